"""calibrate: do the judges rank what they judge?

Real images are swept through four traits: darker, flatter, more muted, more blurred, step by step. A judge is fit to be
a reward when its scores follow the steps in the direction that the preference names. Fine-tuning reads the result.
"""

import random
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from PIL import Image, ImageEnhance, ImageFilter

from t2i_feedback import params, paths, records, stages, workspace
from t2i_feedback.pictures import open_rgb
from t2i_feedback.records import CalibrationRow, CaptionRow

if TYPE_CHECKING:
    from t2i_feedback.mllm.base import Mllm

Trait = Literal["brightness", "contrast", "saturation", "blur"]
TRAITS: tuple[Trait, ...] = get_args(Trait)
SWEEPS: dict[Trait, tuple[float, float]] = {  # first and last level; blur in pixels per 64 of the image's width
    "brightness": (1.2, 0.35),
    "contrast": (1.2, 0.4),
    "saturation": (1.4, 0.0),
    "blur": (0.0, 2.4),
}
LESS: dict[Trait, str] = {  # what a preference says when it wants less of a trait ...
    "brightness": r"dark|dim|gloom|sombre|somber|night|shadow",
    "contrast": r"subdued|muted|low.contrast|flat|hazy|faded",
    "saturation": r"subdued|muted|desaturated|monochrome|gr[ae]y|pale|faded|black.and.white",
    "blur": r"sharp|crisp|in focus|detailed",
}
MORE: dict[Trait, str] = {  # ... or more
    "brightness": r"bright|light\b|sunny|luminous|cheerful",
    "contrast": r"high.contrast|strong contrast|dramatic|striking",
    "saturation": r"vivid|colou?rful|saturated|vibrant|cheerful",
    "blur": r"blur|out of focus|soft\b|dreamy|hazy",
}


def main() -> None:
    p = params.load()
    preference = p.finetune.preference
    rows = records.read(paths.REFERENCE_CAPTIONS, CaptionRow)
    rows = random.Random(p.seed).sample(rows, min(p.calibrate.images, len(rows)))
    judges = sorted({p.finetune.judge, p.evaluate.judge})
    print(
        f"calibrate: {', '.join(judges)} on {len(rows)} images x {len(TRAITS)} traits x {p.calibrate.levels} levels "
        f"for “{preference}”"
    )
    from t2i_feedback import mllm

    images = [open_rgb(paths.DATASET / row.image) for row in rows]
    entries = [p.mllms[name] for name in judges]
    digest = workspace.digest([p.seed, p.calibrate, preference, *entries], [paths.REFERENCE_CAPTIONS])
    found: dict[str, dict[str, float | None]] = {}
    sweeps: list[CalibrationRow] = []
    limit = p.finetune.max_invalid_fraction
    with workspace.partial("calibrate", digest) as work:
        for name in judges:
            with mllm.open(name, p.mllms[name], paths.ledger()) as judge:
                scored = sweep(name, judge, images, rows, p.calibrate.levels, preference, limit)
                found[name] = rank_correlations(scored, preference) | retest(judge, images, scored, preference)
                sweeps += scored
        records.write(work / "sweeps" / "sweeps.jsonl", sweeps)
        workspace.publish(work / "sweeps", paths.CALIBRATION)
    records.write_json(paths.CALIBRATION_METRICS, found)
    ranks = ", ".join(f"{name} {_figure(found[name]['rank_correlation'])}" for name in judges)
    print(f"calibrate: rank correlation with the preferred direction: {ranks}")


def change(image: Image.Image, trait: Trait, level: float) -> Image.Image:
    """The image with one trait changed: Pillow's enhancement factor, or a Gaussian blur of `level` per 64 pixels."""
    if trait == "blur":
        return image.filter(ImageFilter.GaussianBlur(level * image.width / 64))
    enhancers: dict[str, Callable] = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }
    return enhancers[trait](image).enhance(level)


def levels(trait: Trait, count: int) -> list[float]:
    first, last = SWEEPS[trait]
    return [round(first + (last - first) * step / (count - 1), 4) for step in range(count)]


def directions(preference: str) -> dict[Trait, int]:
    """+1 or -1 for each trait that the preference wants more or less of; traits that it does not name are left out."""
    found: dict[Trait, int] = {}
    for trait in TRAITS:
        less, more = (bool(re.search(words[trait], preference, re.IGNORECASE)) for words in (LESS, MORE))
        if less != more:
            found[trait] = 1 if more else -1
    return found


def sweep(
    name: str,
    judge: "Mllm",
    images: Sequence[Image.Image],
    rows: Sequence[CaptionRow],
    count: int,
    preference: str,
    max_invalid_fraction: float,
) -> list[CalibrationRow]:
    """The judge's score of every image at every level of every trait."""
    from t2i_feedback.mllm import roles

    steps = [
        (trait, level, row.caption_id, change(image, trait, level))
        for trait in TRAITS
        for level in levels(trait, count)
        for row, image in zip(rows, images, strict=True)
    ]
    outcomes = roles.score_preference(judge, [changed for *_, changed in steps], preference)
    roles.check_invalid(outcomes, max_invalid_fraction, f"scores of {name}")
    return [
        CalibrationRow(judge=name, trait=trait, level=level, caption_id=caption_id, score=outcome.value)
        for (trait, level, caption_id, _), outcome in zip(steps, outcomes, strict=True)
    ]


def rank_correlations(rows: Sequence[CalibrationRow], preference: str) -> dict[str, float | None]:
    """Spearman's correlation of score and level within an image, in the preferred direction, averaged over images.

    One number per trait that the preference names, and `rank_correlation`, their mean (None if it names none). A judge
    that gives one image the same score at every level has a correlation of 0 there.
    """
    from scipy.stats import spearmanr

    found: dict[str, float | None] = {}
    for trait, direction in directions(preference).items():
        per_image: dict[int, list[tuple[float, float]]] = {}
        for row in rows:
            if row.trait == trait and row.score is not None:
                per_image.setdefault(row.caption_id, []).append((row.level, row.score))
        correlations = [
            0.0 if len({score for _, score in points}) == 1 else float(spearmanr(points).statistic)
            for points in per_image.values()
            if len(points) > 2
        ]
        found[trait] = direction * sum(correlations) / len(correlations) if correlations else 0.0
    named = [value for value in found.values() if value is not None]
    return {"rank_correlation": sum(named) / len(named) if named else None} | found


def retest(
    judge: "Mllm", images: Sequence[Image.Image], rows: Sequence[CalibrationRow], preference: str
) -> dict[str, float | None]:
    """Mean distance of two scores for the same picture (the sharp end of the blur sweep), asked anew."""
    from t2i_feedback.mllm import roles

    before = [row.score for row in rows if row.trait == "blur" and row.level == 0]
    after = roles.score_preference(judge, [change(image, "blur", 0) for image in images], preference, sample=1)
    both = [
        abs(first - second.value)
        for first, second in zip(before, after, strict=True)
        if first is not None and second.value is not None
    ]
    return {"retest_difference": sum(both) / len(both) if both else None}


def _figure(value: float | None) -> str:
    return "not to be had" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    stages.run(main)
