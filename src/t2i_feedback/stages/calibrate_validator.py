"""calibrate_validator: does the validator of stage 1 tell an image's own caption from another image's?

A stage of its own, so that another validator leaves the judges' calibration, and with it the fine-tuning, as they are.
"""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from t2i_feedback import params, paths, records, stages
from t2i_feedback.pictures import open_rgb
from t2i_feedback.records import CaptionRow

if TYPE_CHECKING:
    from t2i_feedback.mllm.base import Mllm

WRONG_CAPTIONS = 3  # per image; each belongs to another image


def main() -> None:
    p = params.load()
    rows = records.read(paths.REFERENCE_CAPTIONS, CaptionRow)
    rows = random.Random(p.seed).sample(rows, min(p.calibrate.images, len(rows)))
    print(f"calibrate_validator: {p.stage1.mllm} on {len(rows)} images, each with {WRONG_CAPTIONS} wrong captions too")
    from t2i_feedback import mllm

    images = [open_rgb(paths.DATASET / row.image) for row in rows]
    with mllm.open(p.stage1.mllm, p.mllms[p.stage1.mllm], paths.ledger()) as validator:
        found = validator_accuracy(validator, images, [row.caption for row in rows], p.stage1.max_invalid_fraction)
    records.write_json(paths.VALIDATOR_METRICS, found)
    print(
        "calibrate_validator: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items() if value is not None)
    )


def validator_accuracy(
    validator: "Mllm", images: Sequence[Image.Image], captions: Sequence[str], max_invalid_fraction: float
) -> dict[str, float | None]:
    """Balanced accuracy at P(yes) = 0.5, AUC, and agreement with itself, on true captions and on other images'."""
    from scipy.stats import rankdata

    from t2i_feedback.mllm import roles

    shifts = range(1, min(WRONG_CAPTIONS, len(images) - 1) + 1)
    wrong = [(i, (i + shift) % len(captions)) for shift in shifts for i in range(len(images))]
    pairs = [(i, i) for i in range(len(images))] + [(i, j) for i, j in wrong if captions[i] != captions[j]]
    pictures, texts = [images[i] for i, _ in pairs], [captions[j] for _, j in pairs]
    verdicts = roles.validate(validator, pictures, texts)
    roles.check_invalid(verdicts, max_invalid_fraction, "verdicts")
    again = roles.validate(validator, pictures[: len(images)], texts[: len(images)], sample=1)
    both = [(a.p_yes, b.p_yes) for a, b in zip(verdicts, again, strict=False) if None not in (a.p_yes, b.p_yes)]
    right = [v.p_yes for v, (i, j) in zip(verdicts, pairs, strict=True) if v.p_yes is not None and i == j]
    other = [v.p_yes for v, (i, j) in zip(verdicts, pairs, strict=True) if v.p_yes is not None and i != j]
    if not right or not other:
        return {"balanced_accuracy": None, "auc": None, "retest_agreement": None}
    ranks = rankdata(right + other)[: len(right)]
    caught = sum(p < 0.5 for p in other) / len(other)
    return {
        "balanced_accuracy": (sum(p >= 0.5 for p in right) / len(right) + caught) / 2,
        "auc": float((ranks.sum() - len(right) * (len(right) + 1) / 2) / (len(right) * len(other))),
        "retest_agreement": sum((a >= 0.5) == (b >= 0.5) for a, b in both) / len(both) if both else None,  # type: ignore[operator]
    }


if __name__ == "__main__":
    stages.run(main)
