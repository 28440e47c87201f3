"""Does a validator tell a true caption of a real image from an altered one?

Altered is a caption with one stated fact changed, where the data set says what captions state, and another image's
caption. Asked item by item, the answer is the share of the caption's items that are there, and the validator's
threshold decides; else it is P(yes), and half is enough.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from t2i_feedback.calibration import discrimination
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
from t2i_feedback.datasets.alterations import ATTRIBUTES, alter, contradicts
from t2i_feedback.datasets.postcards.world import Scene
from t2i_feedback.foundation.images import open_rgb
from t2i_feedback.foundation.rows import CaptionRow
from t2i_feedback.mllm import roles, wording
from t2i_feedback.mllm.base import Mllm

OTHER = "other"  # another image's caption
OTHERS = 3  # of them per image, where there are no facts to change
HALF = 0.5  # P(yes) = P(no)
ASKED_AGAIN = 2  # captions per image that are put a second time, and in other words

Stated = tuple[str, Scene]  # a caption and the facts that it states


@dataclass(frozen=True)
class Claim:
    """A caption put to an image. `altered` names what was made false; None = the caption is true."""

    image: int  # index of the calibration image
    caption: str
    altered: str | None = None


@dataclass(frozen=True)
class CalibratedValidator:
    """What was found of a validator: P(yes) or the share of items of every claim, in their order.

    A caption is accepted when that is at least the threshold.
    """

    claims: list[Claim]
    p_yes: Values
    retest: Agreement
    paraphrases: list[Agreement]
    questions: bool
    threshold: float

    @property
    def true(self) -> list[float]:
        return [p for c, p in zip(self.claims, self.p_yes, strict=True) if p is not None and c.altered is None]

    @property
    def false(self) -> list[float]:
        return [p for found in self.by_alteration.values() for p in found]

    @property
    def by_alteration(self) -> dict[str, list[float]]:
        """What was altered -> P(yes) of the false captions."""
        found: dict[str, list[float]] = {}
        for name in (*ATTRIBUTES, OTHER):
            answers = [p for c, p in zip(self.claims, self.p_yes, strict=True) if p is not None and c.altered == name]
            found |= {name: answers} if answers else {}
        return found

    @property
    def shares_right(self) -> Numbers:
        """Share of true captions that were accepted, and of each kind of false ones that were rejected."""
        least, rejected = self.threshold, self.by_alteration.items()
        shares: Numbers = {"accepted_true": fmean(p >= least for p in self.true) if self.true else None}
        return shares | {f"rejected_{name}": fmean(p < least for p in some) for name, some in rejected}


def calibrate_validator(
    validator: Mllm,
    dataset: Path,
    rows: Sequence[CaptionRow],
    *,
    questions: bool,
    threshold: float,
    max_invalid_fraction: float,
    image_side: int,
    seed: int,
) -> CalibratedValidator:
    """Ask about true and altered captions of images in the data set's folder, with `questions` item by item.

    Raises UserError when a larger share of the answers than `max_invalid_fraction` is not valid.
    """
    rng = random.Random(seed)
    images = [open_rgb(dataset / row.image, image_side) for row in rows]
    put = claims(rows, stated_captions(dataset, rows), rng)
    other_words = wording.paraphrases(validator.templates, roles.validating_words(validator, questions))
    verdicts = roles.validate(validator, [images[c.image] for c in put], [c.caption for c in put], questions=questions)
    roles.check_invalid(verdicts, max_invalid_fraction, "verdicts")
    p_yes: Values = [verdict.p_yes for verdict in verdicts]
    chosen = sorted(rng.sample(range(len(put)), min(len(put), ASKED_AGAIN * len(rows))))

    def ask(asked: Mllm, which: Sequence[int], sample: int) -> Values:
        some = [put[chosen[i]] for i in which]
        answers = roles.validate(asked, [images[c.image] for c in some], [c.caption for c in some], sample, questions)
        return [verdict.p_yes for verdict in answers]

    first = [p_yes[i] for i in chosen]
    again = retest(ask, validator, first, rng)
    reworded = paraphrases(ask, validator, first, other_words)
    return CalibratedValidator(put, p_yes, again, reworded, questions, threshold if questions else HALF)


# ------------------------------------------------------------------------------------------------ claims


def stated_captions(dataset: Path, rows: Sequence[CaptionRow]) -> list[list[Stated]]:
    """Of each row's image, every caption whose facts are known, shortest first: its own and those of the annotations.

    The drawn data set keeps all its annotations beside the images; of other data sets only the row's own is known.
    """
    found: dict[int, dict[str, dict]] = {row.image_id: {row.caption: row.facts} for row in rows if row.facts}
    for file in sorted((dataset / "annotations").glob("captions_*.json")):
        for entry in json.loads(file.read_text(encoding="utf-8"))["annotations"]:
            if entry["image_id"] in found:
                found[entry["image_id"]][entry["caption"]] = entry["facts"]
    return [
        [(text, Scene.from_json(facts)) for text, facts in sorted(captions.items(), key=lambda one: len(one[0]))]
        for captions in (found.get(row.image_id, {}) for row in rows)
    ]


def claims(rows: Sequence[CaptionRow], stated: Sequence[Sequence[Stated]], rng: random.Random) -> list[Claim]:
    """Of each image its caption, one false caption for each attribute that can be altered, with the true caption that
    was altered, and another image's caption (several where there are no facts)."""
    found: dict[Claim, None] = {}  # in order, none twice
    for i, row in enumerate(rows):
        found[Claim(i, row.caption)] = None
        shown = fullest(stated[i])
        for attribute in ATTRIBUTES if shown else ():
            for text, facts in stated[i]:
                altered = alter(text, facts, attribute, shown, rng) if shown else None
                if altered:
                    found[Claim(i, text)] = None
                    found[Claim(i, altered[0], attribute)] = None
                    break
        others = [j for j in (*range(i + 1, len(rows)), *range(i)) if _is_false(rows[j], row, shown)]
        for j in others[: 1 if shown else OTHERS]:
            found[Claim(i, rows[j].caption, OTHER)] = None
    return list(found)


def fullest(stated: Sequence[Stated]) -> Scene | None:
    """The facts that state most of an image; None where none are known."""
    scenes = [facts for _, facts in stated]
    return max(scenes, key=lambda scene: -json.dumps(scene.to_json()).count("null")) if scenes else None


def _is_false(other: CaptionRow, own: CaptionRow, shown: Scene | None) -> bool:
    """Whether another image's caption is false here: certainly so by the facts, else as far as its words differ."""
    if shown and other.facts:
        return contradicts(Scene.from_json(other.facts), shown)
    return other.caption.casefold() != own.caption.casefold()


# ------------------------------------------------------------------------------------------------ numbers


def numbers(found: CalibratedValidator) -> Numbers:
    """Of data/validator. Accuracies are at the threshold of what was found unless they name another."""
    true, false, reworded = found.true, found.false, together(found.paraphrases)
    written: Numbers = {
        "true_captions": float(len(true)),
        "altered_captions": float(len(false)),
        "invalid": invalid(found.p_yes),
        "retest_agreement": found.retest.agreeing(found.threshold),
        "retest_difference": found.retest.difference,
        "retest_invalid": found.retest.invalid,
        "paraphrase_agreement": reworded.agreeing(found.threshold),
        "paraphrase_difference": reworded.difference,
        "paraphrase_invalid": reworded.invalid,
    } | found.shares_right
    names = ("balanced_accuracy", "auc", "calibration_error", "best_threshold", "best_threshold_accuracy")
    if not true or not false:
        return rounded(written) | dict.fromkeys(names)
    best = discrimination.best_threshold(true, false)
    values = (
        discrimination.balanced_accuracy(true, false, found.threshold),
        discrimination.auc(true, false),
        discrimination.calibration_error(true, false),
        best,
        discrimination.balanced_accuracy(true, false, best),
    )
    return rounded(written | dict(zip(names, values, strict=True)))
