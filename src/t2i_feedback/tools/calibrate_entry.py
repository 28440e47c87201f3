"""calibrate one entry of the catalogue, in every role, before a run depends on it. Not a stage of the DAG.

    make calibrate JUDGE=llava16-7b
    python -m t2i_feedback.tools.calibrate_entry llava16-7b

Asks about the same images, preference and captions as the stages do; prints a table, writes the images and numbers
into a folder of its own, and touches no output of DVC. What is asked here, a later run finds in the ledger.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from t2i_feedback import params
from t2i_feedback.calibration.agreement import Numbers
from t2i_feedback.calibration.images import calibration_rows
from t2i_feedback.foundation import paths, running
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import write_json
from t2i_feedback.foundation.images import open_rgb
from t2i_feedback.foundation.rows import CaptionRow
from t2i_feedback.tools import data_set
from t2i_feedback.tools.arguments import Arguments

if TYPE_CHECKING:
    from t2i_feedback.mllm.base import Mllm


def main(*given: str) -> None:
    parser = Arguments(__doc__)
    parser.add_argument("judge", nargs="?", default="", help="an entry of the catalogue mllms")
    name, p = parser.parse_args(given).judge, params.load()
    if name not in p.mllms:
        raise UserError(f"JUDGE: {name!r} is no entry of mllms; there are {', '.join(sorted(p.mllms))}")
    data_set.demand(paths.EVALUATION_CAPTIONS)
    pools = (paths.REFERENCE_CAPTIONS, paths.FINETUNE_CAPTIONS)
    rows = calibration_rows(paths.EVALUATION_CAPTIONS, pools, p.calibrate.images, p.seed)
    images = [open_rgb(paths.DATASET / row.image, p.calibrate.image_side) for row in rows]
    folder = paths.CALIBRATED_ENTRIES / name
    print(f"calibrate: {name} as judge for “{p.finetune.preference}”, validator and enhancer, on {len(rows)} images")
    from t2i_feedback import mllm
    from t2i_feedback.calibration import claims, sweeps
    from t2i_feedback.reporting import calibration

    with mllm.connect(name, p.mllms[name], paths.ledger()) as model:
        judged = sweeps.calibrate_judge(
            name,
            model,
            images,
            rows,
            preference=p.finetune.preference,
            level_count=p.calibrate.levels,
            max_invalid_fraction=p.finetune.max_invalid_fraction,
            seed=p.seed,
        )
        validated = claims.calibrate_validator(
            model,
            paths.DATASET,
            rows,
            questions=p.stage1.questions,
            threshold=p.stage1.threshold,
            max_invalid_fraction=p.stage1.max_invalid_fraction,
            image_side=p.calibrate.image_side,
            seed=p.seed,
        )
        written = try_writing(model, images, rows, p.stage1.max_invalid_fraction)
    calibration.draw_judges({name: judged}, p.finetune.preference, folder / "judge")
    calibration.draw_validator(name, validated, folder / "validator")
    found = {"judge": judged.numbers, "validator": claims.numbers(validated), "enhancer": written}
    write_json(folder / "numbers.json", found)
    for role, numbers in found.items():
        print(f"\n{name} as {role}\n{table(numbers)}")
    print(f"\nimages and numbers in {folder}")


def try_writing(model: "Mllm", images: Sequence[Image.Image], rows: Sequence[CaptionRow], limit: float) -> Numbers:
    """The roles that write, each tried on every caption: enhancing, enhancing again after feedback, and the feedback.

    Raises UserError when a larger share of the answers than `limit` is not valid, of any of them.
    """
    from t2i_feedback.mllm import roles

    captions = [row.caption for row in rows]
    told = roles.explain(model, images, captions)
    first = roles.enhance(model, captions)
    again = roles.enhance(model, captions, [one.value or "it is not there" for one in told])
    found: Numbers = {}
    for what, outcomes in (("prompts", first), ("prompts_after_feedback", again), ("feedback", told)):
        roles.check_invalid(outcomes, limit, what.replace("_", " "))
        valid = [len(one.value.split()) for one in outcomes if one.value]
        found |= {f"{what}_invalid": 1 - len(valid) / len(outcomes), f"{what}_words": sum(valid) / max(1, len(valid))}
    return found


def table(numbers: Numbers) -> str:
    """One number per line, its name first."""
    width = max(map(len, numbers))
    cells = {key: "-" if value is None else f"{value:.3f}".removesuffix(".000") for key, value in numbers.items()}
    return "\n".join(f"  {key.replace('_', ' '):{width}}  {cell:>7}" for key, cell in cells.items())


if __name__ == "__main__":
    running.run(main, *sys.argv[1:])
