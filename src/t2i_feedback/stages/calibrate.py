"""calibrate: do the judges rank what they judge?

Real images are swept through four traits: darker, flatter, more muted, more blurred, step by step. A judge is fit to be
a reward when its scores follow the steps in the direction that the preference names. Fine-tuning reads the result.
Some of the pictures are scored a second time, and in other words: a judge should say the same again.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageEnhance, ImageFilter

from t2i_feedback import params
from t2i_feedback.calibration.agreement import (
    Agreement,
    Numbers,
    Values,
    calibration_rows,
    invalid,
    paraphrases,
    retest,
    rounded,
    together,
)
from t2i_feedback.foundation import paths, running, workspace
from t2i_feedback.foundation.files import write_json
from t2i_feedback.foundation.images import open_rgb
from t2i_feedback.foundation.params import decisive
from t2i_feedback.foundation.rows import CalibrationRow, CaptionRow, write_rows
from t2i_feedback.foundation.traits import TRAITS, Trait, directions

if TYPE_CHECKING:
    from t2i_feedback.mllm.base import Mllm

Step = tuple[Trait, float, int, Image.Image]  # trait, level, caption_id, the changed image
SWEEPS: dict[Trait, tuple[float, float]] = {  # first and last level; blur in pixels per 64 of the image's width
    "brightness": (1.2, 0.35),
    "contrast": (1.2, 0.4),
    "saturation": (1.4, 0.0),
    "blur": (0.0, 2.4),
}


@dataclass(frozen=True)
class Calibrated:
    """What was found of one judge."""

    sweeps: list[CalibrationRow]
    retest: Agreement
    paraphrases: list[Agreement]
    numbers: Numbers


def main() -> None:
    p = params.load()
    judges = sorted({p.finetune.judge, p.evaluate.judge})
    rows = calibration_rows(p.calibrate.images, p.seed)
    print(
        f"calibrate: {', '.join(judges)} on {len(rows)} images x {len(TRAITS)} traits x {p.calibrate.levels} levels "
        f"for “{p.finetune.preference}”"
    )
    from t2i_feedback import mllm

    images = [open_rgb(paths.DATASET / row.image) for row in rows]
    entries = [str(decisive(p.mllms[name])) for name in judges]
    dataset = [paths.REFERENCE_CAPTIONS, paths.EVALUATION_CAPTIONS, paths.FINETUNE_CAPTIONS]
    asked: list[workspace.Setting] = [p.seed, p.calibrate.images, p.calibrate.levels, p.finetune.preference]
    digest = workspace.digest([*asked, *entries], dataset)
    found: dict[str, Calibrated] = {}
    with workspace.partial("calibrate", digest) as work:
        for name in judges:
            with mllm.connect(name, p.mllms[name], paths.ledger()) as judge:
                found[name] = calibrate(name, judge, images, rows, p)
        write_rows(work / "sweeps" / "sweeps.jsonl", [row for one in found.values() for row in one.sweeps])
        workspace.publish(work / "sweeps", paths.CALIBRATION)
    draw(found, p.finetune.preference, paths.JUDGE_PICTURES)
    write_json(paths.CALIBRATION_METRICS, {name: one.numbers for name, one in found.items()})
    ranks = ", ".join(f"{name} {_figure(one.numbers['rank_correlation'])}" for name, one in found.items())
    print(f"calibrate: rank correlation with the preferred direction: {ranks}; pictures in {paths.JUDGE_PICTURES}")


def calibrate(
    name: str, judge: "Mllm", images: Sequence[Image.Image], rows: Sequence[CaptionRow], p: params.Params
) -> Calibrated:
    """Sweeps of all images, and both agreements on the spread of their pictures.

    Raises UserError when more answers than `finetune.max_invalid_fraction` of the sweeps are not valid.
    """
    from t2i_feedback.mllm import roles, wording

    preference = p.finetune.preference
    other_words = wording.paraphrases(judge.templates, "judge")
    pictures = steps(images, rows, p.calibrate.levels)
    outcomes = roles.score_preference(judge, [picture for *_, picture in pictures], preference)
    roles.check_invalid(outcomes, p.finetune.max_invalid_fraction, f"scores of {name}")
    swept = [
        CalibrationRow(judge=name, trait=trait, level=level, caption_id=caption_id, score=outcome.value)
        for (trait, level, caption_id, _), outcome in zip(pictures, outcomes, strict=True)
    ]
    chosen = spread(rows, p.calibrate.levels)

    def ask(asked: "Mllm", questions: Sequence[int], sample: int) -> Values:
        some = [pictures[chosen[question]][-1] for question in questions]
        return [outcome.value for outcome in roles.score_preference(asked, some, preference, sample)]

    first = [swept[i].score for i in chosen]
    again = retest(ask, judge, first, random.Random(p.seed))
    reworded = paraphrases(ask, judge, first, other_words)
    numbers = rank_correlations(swept, preference) | {
        "invalid": invalid([row.score for row in swept]),
        "retest_difference": again.difference,
        "retest_invalid": again.invalid,
        "paraphrase_difference": together(reworded).difference,
        "paraphrase_correlation": together(reworded).correlation,
        "paraphrase_invalid": together(reworded).invalid,
    }
    return Calibrated(swept, again, reworded, rounded(numbers))


def draw(found: Mapping[str, Calibrated], preference: str, folder: Path) -> None:
    """The pictures of the report: one file for each question that was put to the judges."""
    from t2i_feedback.reporting import calibration

    swept = [row for one in found.values() for row in one.sweeps]
    correlations = {name: one.numbers for name, one in found.items()}
    calibration.sweeps(swept, directions(preference), correlations, folder / "sweeps.png")
    retests = {name: [one.retest.pairs] for name, one in found.items()}
    calibration.agreement(retests, calibration.SCORES, "asked again", folder / "retest.png")
    reworded = {name: [agreement.pairs for agreement in one.paraphrases] for name, one in found.items()}
    calibration.agreement(reworded, calibration.SCORES, "in other words", folder / "paraphrases.png")


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


def _figure(value: float | None) -> str:
    return "not to be had" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    running.run(main)
