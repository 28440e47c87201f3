"""Does a judge rank what it judges? Real images are swept through four traits, step by step.

Step by step they are darker, flatter, more muted, more blurred. A judge is fit to be a reward when its scores follow
the steps in the direction that the preference names. Some of the images are scored a second time, and in other words:
a judge should say the same again.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageEnhance, ImageFilter

from t2i_feedback.calibration.agreement import (
    Agreement,
    Numbers,
    Values,
    invalid,
    paraphrases,
    retest,
    rounded,
    together,
)
from t2i_feedback.foundation.rows import CalibrationRow, CaptionRow
from t2i_feedback.foundation.traits import TRAITS, Trait, directions
from t2i_feedback.mllm import roles, wording
from t2i_feedback.mllm.base import Mllm

Step = tuple[Trait, float, int, Image.Image]  # trait, level, caption_id, the changed image
SWEEPS: dict[Trait, tuple[float, float]] = {  # first and last level; blur in pixels per 64 of the image's width
    "brightness": (1.2, 0.35),
    "contrast": (1.2, 0.4),
    "saturation": (1.4, 0.0),
    "blur": (0.0, 2.4),
}


@dataclass(frozen=True)
class CalibratedJudge:
    """What was found of one judge."""

    sweeps: list[CalibrationRow]
    retest: Agreement
    paraphrases: list[Agreement]
    numbers: Numbers


def calibrate_judge(
    name: str,
    judge: Mllm,
    images: Sequence[Image.Image],
    rows: Sequence[CaptionRow],
    *,
    preference: str,
    level_count: int,
    max_invalid_fraction: float,
    seed: int,
) -> CalibratedJudge:
    """Sweeps of all images, and both agreements on the spread of their images.

    Raises UserError when a larger share of the sweeps' answers than `max_invalid_fraction` is not valid.
    """
    other_words = wording.paraphrases(judge.templates, "judge")
    changed = steps(images, rows, level_count)
    outcomes = roles.score_preference(judge, [image for *_, image in changed], preference)
    roles.check_invalid(outcomes, max_invalid_fraction, f"scores of {name}")
    swept = [
        CalibrationRow(judge=name, trait=trait, level=level, caption_id=caption_id, score=outcome.value)
        for (trait, level, caption_id, _), outcome in zip(changed, outcomes, strict=True)
    ]
    chosen = spread(rows, level_count)

    def ask(asked: Mllm, questions: Sequence[int], sample: int) -> Values:
        some = [changed[chosen[question]][-1] for question in questions]
        return [outcome.value for outcome in roles.score_preference(asked, some, preference, sample)]

    first = [swept[i].score for i in chosen]
    again = retest(ask, judge, first, random.Random(seed))
    reworded = paraphrases(ask, judge, first, other_words)
    numbers = rank_correlations(swept, preference) | {
        "invalid": invalid([row.score for row in swept]),
        "retest_difference": again.difference,
        "retest_invalid": again.invalid,
        "paraphrase_difference": together(reworded).difference,
        "paraphrase_correlation": together(reworded).correlation,
        "paraphrase_invalid": together(reworded).invalid,
    }
    return CalibratedJudge(swept, again, reworded, rounded(numbers))


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


def steps(images: Sequence[Image.Image], rows: Sequence[CaptionRow], count: int) -> list[Step]:
    """Every image at every level of every trait."""
    return [
        (trait, level, row.caption_id, change(image, trait, level))
        for trait in TRAITS
        for level in levels(trait, count)
        for row, image in zip(rows, images, strict=True)
    ]


def spread(rows: Sequence[CaptionRow], count: int) -> list[int]:
    """Of the steps, two per image that differ widely: the image as it is, and the end of one of its sweeps in turn."""
    as_it_is = TRAITS.index("blur") * count  # blur begins with none
    last = [(i % len(TRAITS)) * count + count - 1 for i in range(len(rows))]
    return [level * len(rows) + i for i, end in enumerate(last) for level in (as_it_is, end)]


def rank_correlations(rows: Sequence[CalibrationRow], preference: str) -> dict[str, float | None]:
    """Spearman's correlation of score and level within an image, in the preferred direction, averaged over images.

    One number per trait that the preference names, and `rank_correlation`, their mean (None if it names none). A judge
    that gives one image the same score at every level has a correlation of 0 there. A trait without an image of three
    valid scores is None, and left out of the mean.
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
        found[trait] = direction * sum(correlations) / len(correlations) if correlations else None
    named = [value for value in found.values() if value is not None]
    return {"rank_correlation": sum(named) / len(named) if named else None} | found
