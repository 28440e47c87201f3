"""calibrate_validator: does the validator of stage 1 tell true captions from altered ones? (calibration/claims.py)

A stage of its own, so that another validator leaves the judges' calibration, and with it the fine-tuning, as they are.
The best threshold is shown; `stage1.threshold` stays what the user sets.
"""

import sys
from typing import Annotated

from t2i_feedback.calibration.images import calibration_rows
from t2i_feedback.foundation import paths, pipeline, running, workspace
from t2i_feedback.foundation.files import write_json
from t2i_feedback.foundation.params import FREE, EntryName, Keys, Seed, Share, key, load
from t2i_feedback.mllm.section import Catalogue

GUESSING = 0.6  # an area under the curve below this is close to chance, which has .5


class Settings(Keys):
    seed: Seed
    mllms: Catalogue
    images: int = key("calibrate.images")
    image_side: int = key("calibrate.image_side")
    validator: EntryName = key("stage1.mllm")
    questions: bool = key("stage1.questions")
    threshold: Share = key("stage1.threshold")
    max_invalid_fraction: Annotated[Share, FREE] = key("stage1.max_invalid_fraction")


def main() -> None:
    stage = pipeline.running("calibrate_validator")
    p = load(Settings)
    name = p.validator
    pools = (paths.REFERENCE_CAPTIONS, paths.FINETUNE_CAPTIONS)
    rows = calibration_rows(paths.EVALUATION_CAPTIONS, pools, p.images, p.seed)
    print(f"calibrate_validator: {name} on {len(rows)} images, with true and altered captions")
    from t2i_feedback import mllm
    from t2i_feedback.calibration import claims
    from t2i_feedback.reporting import calibration

    limit = ("stage1.max_invalid_fraction", p.max_invalid_fraction)
    with workspace.unfinished(stage, p) as work:
        with mllm.connect(name, p.mllms[name], paths.ledger(), max_invalid=limit) as validator:
            found = claims.calibrate_validator(
                validator,
                paths.DATASET,
                rows,
                questions=p.questions,
                threshold=p.threshold,
                max_invalid_fraction=p.max_invalid_fraction,
                image_side=p.image_side,
                seed=p.seed,
            )
        written = claims.numbers(found)
        out = work / "validator"
        write_json(out / paths.VALIDATOR_NUMBERS.name, written)
        calibration.draw_validator(name, found, out / paths.VALIDATOR_PLOTS.name)
        workspace.publish(stage, p, out, paths.VALIDATOR)
    shown = ("balanced_accuracy", "auc", "best_threshold", "retest_agreement")
    text = ", ".join(f"{key} {written[key]:.2f}" for key in shown if written[key] is not None)
    auc = written["auc"]
    if auc is not None and auc < GUESSING:
        why = f"{name} hardly tells true captions of these images from false ones (AUC {auc:.2f})"
        print(f"warning: {why}: choose a validator that can see them (docs/judges.md)", file=sys.stderr)
    print(f"calibrate_validator: {text or 'no valid answers'}; images in {paths.VALIDATOR_PLOTS}")


if __name__ == "__main__":
    running.run(main)
