"""A GPU's first day: what only a GPU can show, in parts of minutes, with random weights and without a download.

    make gpu-check                     # all parts, 8 minutes at most; again: those that are left
    make gpu-check PARTS="sd15 nccl"   # some of them
    make gpu-check DEVICE=cpu          # tiny sizes on the CPU: the same code, figures that mean nothing
    make gpu-check WRITE=1             # and what was measured is written into estimates/throughputs.yaml

Every part is a process of its own (parts.py). What it finds stands in gpu-check/results.jsonl as it is found, and on
gpu-check/report.html, a page that can be sent in. Delete that folder to begin anew, as with another card.
"""

import time

from t2i_feedback.foundation import running
from t2i_feedback.foundation.device import pick
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import write_text
from t2i_feedback.tools.arguments import Arguments
from t2i_feedback.tools.estimate.figures import FIGURES
from t2i_feedback.tools.gpu_check import page, parts
from t2i_feedback.tools.gpu_check.results import attempts, read
from t2i_feedback.tools.gpu_check.yaml_lines import as_yaml, written

LIMIT = 480.0  # seconds of a call


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts.PARTS)}; none: all")
    parser.add_argument("--device", default="auto", help="auto, cuda or cpu")
    parser.add_argument("--write", action="store_true", help=f"write what was measured into {FIGURES}")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.parts if name not in parts.PARTS]
    if unknown:
        raise UserError(f"PARTS: no part is called {', '.join(unknown)}; there are {', '.join(parts.PARTS)}")
    if arguments.device not in ("auto", "cuda", "cpu"):
        raise UserError(f"DEVICE: {arguments.device} is none; there are auto, cuda, cpu")
    device = arguments.device if arguments.device == "cpu" else pick(arguments.device, "DEVICE")
    if device != "cuda":
        device = "cpu"
        print("gpu-check: tiny sizes on the CPU: the code is what runs on a GPU, the figures mean nothing", flush=True)
    end, left = time.monotonic() + LIMIT, []
    for task in parts.tasks(arguments.parts or [*parts.PARTS]):
        before = attempts(read(), device).get(task)
        if before and before.done:
            print(f"{task}: done before")
        elif end <= time.monotonic():
            left.append(task)
        else:
            print(f"{task} ..." + (f" (last time it {before.state})" if before and not before.end else ""), flush=True)
            parts.run(task, device, end)
            found = attempts(read(), device)
            print(f"{task}: {found[task].state}", flush=True)
            page.write(found, device)
    found = attempts(read(), device)
    print(f"\n{page.text(found)}\n\nopen {page.write(found, device)}")
    if left:
        print(f"the call's {LIMIT / 60:g} minutes are over; the same command goes on with {', '.join(left)}")
    lines = [line for one in found.values() for line in one.corrections]
    if lines and arguments.write:
        write_text(FIGURES, written(lines))
        print(f"written into {FIGURES}: {len(lines)} figures; `git diff` shows them")
    elif lines:
        print(f"to paste into {FIGURES} (WRITE=1 does it):\n{as_yaml(lines)}")


if __name__ == "__main__":
    running.run(main)
