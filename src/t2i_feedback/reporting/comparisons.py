"""Arms against each other, caption by caption, with 95 % intervals; and what the validator's loop did."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from t2i_feedback import arms
from t2i_feedback.arms import Arm
from t2i_feedback.evaluation import intervals
from t2i_feedback.evaluation.intervals import Interval
from t2i_feedback.foundation.rows import RoundRow
from t2i_feedback.reporting import preferred
from t2i_feedback.reporting.evidence import Evidence, MeasuredArm

KEPT_SHARE = 0.9  # of the base arm's alignment and diversity that fine-tuning must keep, else it has collapsed


@dataclass(frozen=True)
class Comparison:
    """How `arm` differs from `base` in one measure, over the captions that both have it for."""

    measure: str
    arm: Arm
    base: Arm
    base_value: float
    arm_value: float
    interval: Interval  # of the mean difference arm - base, or of the ratio arm / base
    is_ratio: bool = False

    @property
    def key(self) -> str:
        return f"{self.measure}_{self.arm.name}_{'over' if self.is_ratio else 'minus'}_{self.base.name}"

    @property
    def direction(self) -> int:
        """1: above the base, -1: below it, 0: the interval holds both."""
        neutral = 1.0 if self.is_ratio else 0.0
        return int(self.interval.low > neutral) - int(self.interval.high < neutral)


def compare(evidence: Evidence, arm: Arm, base: Arm, measure: str, ratio: bool = False) -> Comparison | None:
    """None when an arm was not run, or when no caption has the measure in both."""
    if arm.name not in evidence.arms or base.name not in evidence.arms:
        return None
    a, b = (values(evidence.arms[one.name], measure) for one in (arm, base))
    return _compare(evidence, (arm, a), (base, b), measure, ratio)


def _compare(
    evidence: Evidence, arm: tuple[Arm, intervals.Values], base: tuple[Arm, intervals.Values], measure: str, ratio: bool
) -> Comparison | None:
    a, b = arm[1], base[1]
    make = intervals.ratio if ratio else intervals.difference
    interval = make(a, b, evidence.settings.resamples, np.random.default_rng(evidence.settings.seed))
    if interval is None:
        return None
    shared = [i for i in sorted(a.keys() & b.keys()) if a[i] is not None and b[i] is not None]
    arm_value, base_value = (float(np.mean([side[i] for i in shared])) for side in (a, b))
    return Comparison(measure, arm[0], base[0], base_value, arm_value, interval, ratio)


def values(arm: MeasuredArm, measure: str) -> intervals.Values:
    """caption_id -> the measure, or None where there is none."""
    found = {caption_id: getattr(row, measure) for caption_id, row in arm.measured.items()}
    return {caption_id: None if value is None else float(value) for caption_id, value in found.items()}


def arm_means(evidence: Evidence, measure: str) -> dict[str, Interval]:
    """Each arm's mean, for arms that have the measure."""
    means = {
        name: intervals.mean(
            values(arm, measure), evidence.settings.resamples, np.random.default_rng(evidence.settings.seed)
        )
        for name, arm in evidence.arms.items()
    }
    return {name: mean for name, mean in means.items() if mean}


def stage1(evidence: Evidence) -> list[Comparison]:
    found = [compare(evidence, arm, base, measure) for measure in arms.SHOWS_CAPTION for arm, base in arms.pairs()]
    return [comparison for comparison in found if comparison]


def stage2(evidence: Evidence) -> list[Comparison]:
    base = arms.base()
    found = [compare(evidence, arm, base, measure) for arm in arms.ARMS for measure in arm.preference]
    found += [compare(evidence, arm, base, "alignment", ratio=True) for arm in arms.ARMS if arm.may_collapse]
    return [comparison for comparison in found if comparison]


def diversity_ratio(evidence: Evidence, arm: Arm) -> float | None:
    """The arm's diversity over the base arm's. One number per arm: it has no interval."""
    names = (arm.name, arms.base().name)
    found = [evidence.arms[name].metrics.get("diversity") for name in names if name in evidence.arms]
    return found[0] / found[1] if len(found) == 2 and found[0] is not None and found[1] else None


# ------------------------------------------------------------------------------------------------ the loop


@dataclass(frozen=True)
class RoundSummary:
    """One round of an arm's loop."""

    arm: str
    round: int
    drawn: int
    judged: int  # verdicts that were valid
    accepted: int
    alignment: float | None  # mean over the round's images


def rounds(arm: MeasuredArm) -> list[RoundSummary]:
    alignments = {(row.caption_id, row.round): row.alignment for row in arm.measured_rounds}
    summaries = []
    for number in sorted({row.round for row in arm.rounds}):
        rows = [row for row in arm.rounds if row.round == number]
        known = [a for row in rows if (a := alignments.get((row.caption_id, number))) is not None]
        summaries.append(
            RoundSummary(
                arm.name,
                number,
                drawn=len(rows),
                judged=sum(row.accepted is not None for row in rows),
                accepted=sum(row.accepted is True for row in rows),
                alignment=float(np.mean(known)) if known else None,
            )
        )
    return summaries


@dataclass(frozen=True)
class Split:
    """Mean alignment of accepted and of rejected images, and how far apart they are."""

    accepted: int
    rejected: int
    accepted_alignment: float
    rejected_alignment: float
    interval: Interval


def splits(evidence: Evidence) -> dict[str, Split]:
    """Of the arms that draw several images, as far as they rejected and accepted something."""
    settings = evidence.settings
    found = {
        name: accepted_against_rejected(arm.measured_rounds, settings.resamples, settings.seed)
        for name, arm in evidence.arms.items()
        if arm.arm.draws_several
    }
    return {name: split for name, split in found.items() if split}


def accepted_against_rejected(rows: Iterable[RoundRow], resamples: int, seed: int) -> Split | None:
    """Over all rounds. The interval resamples captions, as the images of one caption are alike."""
    known = [
        (row.caption_id, row.accepted, row.alignment)
        for row in rows
        if row.accepted is not None and row.alignment is not None
    ]
    captions = {caption_id: i for i, caption_id in enumerate(sorted({caption_id for caption_id, *_ in known}))}
    sums = np.zeros((len(captions), 4))  # alignment of accepted, their count, the same of rejected
    for caption_id, accepted, alignment in known:
        sums[captions[caption_id], slice(0, 2) if accepted else slice(2, 4)] += np.array([alignment, 1.0])
    totals = sums.sum(0)
    if not totals[1] or not totals[3]:
        return None
    draws = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), resamples) @ sums
    draws = draws[(draws[:, 1] > 0) & (draws[:, 3] > 0)]
    low, high = np.percentile(draws[:, 0] / draws[:, 1] - draws[:, 2] / draws[:, 3], [2.5, 97.5])
    means = float(totals[0] / totals[1]), float(totals[2] / totals[3])
    interval = Interval(means[0] - means[1], float(low), float(high), n=len(sums), left_out=0)
    return Split(int(totals[1]), int(totals[3]), *means, interval)


def feedback_effects(evidence: Evidence) -> list[Comparison]:
    """Alignment of second images with feedback in the prompt (an arm with rounds) and without (the arm that chooses
    among as many), from the same noise."""
    found = []
    for told, untold in arms.controlled():
        if told.name in evidence.arms and untold.name in evidence.arms:
            a, b = (_second(evidence.arms[arm.name].measured_rounds) for arm in (told, untold))
            found.append(_compare(evidence, (told, a), (untold, b), "second_alignment", ratio=False))
    return [comparison for comparison in found if comparison]


def _second(rows: Sequence[RoundRow]) -> intervals.Values:
    return {row.caption_id: row.alignment for row in rows if row.round == 2}


# ------------------------------------------------------------------------------------------------ calibration


def sweep_means(evidence: Evidence) -> dict[tuple[str, str], list[tuple[float, float, float]]]:
    """(judge, trait) -> (level, mean score, its standard error), by level; answers that were not valid are left out."""
    scores: dict[tuple[str, str], dict[float, list[float]]] = {}
    for row in evidence.calibration:
        if row.score is not None:
            scores.setdefault((row.judge, row.trait), {}).setdefault(row.level, []).append(row.score)
    return {
        key: [(level, float(np.mean(levels[level])), _standard_error(levels[level])) for level in sorted(levels)]
        for key, levels in sorted(scores.items())
    }


def _standard_error(scores: Sequence[float]) -> float:
    return float(np.std(scores, ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else 0.0


def summary(evidence: Evidence) -> dict[str, float]:
    """Flat numbers for `dvc metrics diff`: each comparison with its interval's ends, and what a person preferred."""
    numbers: dict[str, float] = {}
    for comparison in (*stage1(evidence), *stage2(evidence), *feedback_effects(evidence)):
        numbers |= _with_ends(comparison.key, comparison.interval)
    for arm in arms.ARMS:
        if arm.may_collapse and (ratio := diversity_ratio(evidence, arm)) is not None:
            numbers[f"diversity_{arm.name}_over_{arms.base().name}"] = ratio
    for name, split in splits(evidence).items():
        numbers |= _with_ends(f"alignment_{name}_accepted_minus_rejected", split.interval)
    return numbers | preferred.numbers(evidence.preferred)


def _with_ends(key: str, interval: Interval) -> Mapping[str, float]:
    return {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}
