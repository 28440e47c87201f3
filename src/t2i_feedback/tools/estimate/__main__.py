"""What a run will cost before it is started: GPU hours, judge calls and dollars, stage by stage, and the bottleneck.

    make estimate PROFILE=paper GPUS=8 GPU=a100       # PROFILE left out: the present params.yaml; JSON=1: for a program
    python -m t2i_feedback.tools.estimate paper --gpus 8 --gpu a100

Counts follow from the parameters alone, one function per stage (counts.py). What a unit of work takes stands with its
source in estimates/throughputs.yaml (figures.py); a processor is tried for a second and those of `cpu` are scaled
by what comes out (pace.py). Nothing else is loaded, asked or drawn. Where only a size is known of an MLLM, the
roofline gives its time (costs.py): reading n tokens takes 2 n parameters floating-point operations, writing one takes
reading all weights once per batch. A good estimate is right within a factor of two; `make bench` measures.
"""

import json
from dataclasses import asdict

from t2i_feedback.foundation import running
from t2i_feedback.tools import profile
from t2i_feedback.tools.arguments import Arguments, count
from t2i_feedback.tools.estimate import page
from t2i_feedback.tools.estimate.costs import estimate
from t2i_feedback.tools.estimate.figures import read
from t2i_feedback.tools.estimate.pace import here


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("profile", nargs="*", help="files of profiles/, without .yaml; none: params.yaml")
    parser.add_argument("--gpus", type=count, default=1, help="how many")
    parser.add_argument("--gpu", default="cpu", help="which: a name under gpus of estimates/throughputs.yaml")
    parser.add_argument("--json", action="store_true", help="for a program")
    arguments = parser.parse_args()
    p, figures = profile.chosen(*arguments.profile), read()
    found = estimate(p, figures, arguments.gpu, arguments.gpus, here(figures, arguments.gpu))
    print(json.dumps(asdict(found), indent=2) if arguments.json else page.table(found))


if __name__ == "__main__":
    running.run(main)
