"""calibrate one entry of the catalogue, as judge and as validator, before a run depends on it. Not a stage of the DAG.

    make calibrate JUDGE=llava16-7b
    python -m t2i_feedback.tools.calibrate_entry llava16-7b

Asks about the same images, preference and captions as the stages do; prints a table, writes the pictures and numbers
into a folder of its own, and touches no output of DVC. What is asked here, a later run finds in the ledger.
"""

import sys

from t2i_feedback import params
from t2i_feedback.calibration.agreement import Numbers, calibration_rows
from t2i_feedback.foundation import paths, running
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import write_json
from t2i_feedback.foundation.images import open_rgb
from t2i_feedback.stages import calibrate, calibrate_validator


def main(name: str = "") -> None:
    p = params.load()
    if name not in p.mllms:
        raise UserError(f"which judge? a name of the catalogue mllms ({', '.join(sorted(p.mllms))}), not {name!r}")
    rows = calibration_rows(p.calibrate.images, p.seed)
    images = [open_rgb(paths.DATASET / row.image) for row in rows]
    folder = paths.CALIBRATED_ENTRIES / name
    print(f"calibrate: {name} as judge for “{p.finetune.preference}” and as validator, on {len(rows)} images")
    from t2i_feedback import mllm

    with mllm.connect(name, p.mllms[name], paths.ledger()) as model:
        judged = calibrate.calibrate(name, model, images, rows, p)
        validated = calibrate_validator.calibrate(model, rows, p)
    calibrate.draw({name: judged}, p.finetune.preference, folder / "judge")
    calibrate_validator.draw(name, validated, folder / "validator")
    found = {"judge": judged.numbers, "validator": calibrate_validator.numbers(validated)}
    write_json(folder / "numbers.json", found)
    for role, numbers in found.items():
        print(f"\n{name} as {role}\n{table(numbers)}")
    print(f"\npictures and numbers in {folder}")


def table(numbers: Numbers) -> str:
    """One number per line, its name first."""
    width = max(map(len, numbers))
    cells = {key: "-" if value is None else f"{value:.3f}".removesuffix(".000") for key, value in numbers.items()}
    return "\n".join(f"  {key.replace('_', ' '):{width}}  {cell:>7}" for key, cell in cells.items())


if __name__ == "__main__":
    running.run(main, *sys.argv[1:])
