"""The outcome in words, built from the numbers: which arms helped, by how much, how surely."""

from dataclasses import dataclass

from t2i_feedback import arms
from t2i_feedback.arms import Arm
from t2i_feedback.evaluation.intervals import Interval
from t2i_feedback.foundation.params import sides
from t2i_feedback.reporting.comparisons import KEPT_SHARE, Comparison, compare, diversity_ratio
from t2i_feedback.reporting.evidence import Evidence, MeasuredArm
from t2i_feedback.reporting.tables import listed, number, percent, signed

OUTCOMES = {1: "helps", 0: "no measurable effect", -1: "hurts"}
COLLAPSED = "may have collapsed"  # in place of "helps", whatever the judge says


@dataclass(frozen=True)
class Verdict:
    title: str
    outcome: str
    text: str


def interval_text(interval: Interval, digits: int, sign: bool = True) -> str:
    """ "+0.08, 95 % interval +0.05 to +0.11"."""
    write = signed if sign else number
    value, low, high = (write(x, digits) for x in (interval.value, interval.low, interval.high))
    return f"{value}, 95 % interval {low} to {high}"


def verdicts(evidence: Evidence) -> list[Verdict]:
    found = [stage1_verdict(evidence, arm) for arm in compared_with_base()]
    found += [feedback_verdict(evidence, told, untold) for told, untold in arms.controlled()]
    found += [finetuned_verdict(evidence, arm) for arm in arms.ARMS if arm.may_collapse]
    return [verdict for verdict in found if verdict]


def compared_with_base() -> list[Arm]:
    """The arms whose images should show their captions better than the base arm's."""
    return [arm for arm, other in arms.pairs() if other == arms.base()]


def stage1_verdict(evidence: Evidence, arm: Arm) -> Verdict | None:
    """By alignment with the caption, where that can be measured; else the arm's FID stands beside the base arm's."""
    base = arms.base()
    if arm.name not in evidence.arms or base.name not in evidence.arms:
        return None
    title = f"{arm.label.capitalize()} against {base.label}"
    comparison = compare(evidence, arm, base, "alignment")
    if comparison:
        return Verdict(title, OUTCOMES[comparison.direction], f"Alignment {change_text(comparison, 3)}.")
    ours, theirs = (_fid(evidence.arms[one.name]) for one in (arm, base))
    text = f"Alignment cannot be measured for this data set; FID is {ours}, {base.label}’s is {theirs}."
    return Verdict(title, "not measured", text)


def _fid(arm: MeasuredArm) -> str:
    return number(arm.metrics.get("fid"), 2, arm.metrics.get("fid_std"))


def change_text(comparison: Comparison, digits: int) -> str:
    before, after = number(comparison.base_value, digits), number(comparison.arm_value, digits)
    return f"goes from {before} to {after} ({interval_text(comparison.interval, digits)})"


def feedback_verdict(evidence: Evidence, told: Arm, untold: Arm) -> Verdict | None:
    """Do rounds with feedback beat drawing as many images and choosing?"""
    comparison = compare(evidence, told, untold, "alignment")
    if not comparison:
        return None
    found = {
        1: "Feedback does more than choosing among as many images",
        0: "Feedback does no measurably better than choosing among as many images",
        -1: "Choosing among as many images does better than feedback",
    }[comparison.direction]
    return Verdict(
        f"{told.label.capitalize()} against {untold.label}",
        OUTCOMES[comparison.direction],
        f"{found}: alignment {number(comparison.arm_value, 3)} against {number(comparison.base_value, 3)} "
        f"({interval_text(comparison.interval, 3)}).",
    )


def finetuned_verdict(evidence: Evidence, arm: Arm) -> Verdict | None:
    """By the held-out judge, which rewarded nothing; and whether the captions are still drawn."""
    held_out = compare(evidence, arm, arms.base(), "held_out_score")
    if not held_out:
        return None
    text = f"The held-out judge’s score {change_text(held_out, 2)}; {collapse_text(evidence, arm)}."
    outcome = COLLAPSED if held_out.direction > 0 and collapsed(evidence, arm) else OUTCOMES[held_out.direction]
    return Verdict(f"{arm.label.capitalize()} against {arms.base().label}", outcome, text)


def kept_shares(evidence: Evidence, arm: Arm) -> dict[str, float]:
    """What the arm has of the base arm's alignment and diversity, as far as they were measured."""
    alignment = compare(evidence, arm, arms.base(), "alignment", ratio=True)
    shares = {"alignment": alignment.interval.value if alignment else None, "diversity": diversity_ratio(evidence, arm)}
    return {name: share for name, share in shares.items() if share is not None}


def collapsed(evidence: Evidence, arm: Arm) -> bool:
    """Whether less than KEPT_SHARE is left of alignment or of diversity."""
    return any(share < KEPT_SHARE for share in kept_shares(evidence, arm).values())


def collapse_text(evidence: Evidence, arm: Arm) -> str:
    """Whether alignment and diversity stayed at KEPT_SHARE of the base arm's or above."""
    known = kept_shares(evidence, arm)
    if not known:
        return "whether the images collapsed was not measured"
    shares_text = listed([f"{percent(share)} of {arms.base().label}’s {name}" for name, share in known.items()])
    lost = f", less than the {percent(KEPT_SHARE)} that rule out a collapse" if collapsed(evidence, arm) else ""
    return f"it keeps {shares_text}{lost}"


def lead(evidence: Evidence) -> str:
    """One paragraph: what was run, and what helped."""
    p = evidence.settings
    ways, captions = len(evidence.arms), len(evidence.captions)
    ends = "" if p.max_held_out_drop is None else " but may end training"
    left_out = f" {evidence.left_out} images of {p.data_set} were left out, since they cannot be read."
    return (
        f"{p.model} drew {captions} captions of {p.data_set} in {ways} ways, from the same noise in each "
        f"({' × '.join(map(str, sides(p.size)))} pixels, {p.steps} steps, guidance {p.guidance:g}). In stage 1, "
        f"the MLLM {p.mllm} rewrites captions and accepts or rejects images, for {p.max_rounds} rounds "
        f"at most. In stage 2, the judge {p.judge} plays a user who likes “{p.preference}”, and its "
        f"scores fine-tune the model ({p.objective}) over {p.epochs} epochs of {p.images_per_epoch} images; the judge "
        f"{p.held_out}, which rewards nothing{ends}, checks the outcome." + (left_out if evidence.left_out else "")
    )


def headline(evidence: Evidence) -> str:
    """Two sentences: which arms follow captions better than the base arm, and whether the preference was met."""
    base = arms.base()
    stage1 = [(arm.label, c) for arm in compared_with_base() if (c := compare(evidence, arm, base, "alignment"))]
    words = {
        1: f"Images follow their captions better than {base.label}’s with {{}}",
        0: "no measurable difference with {}",
        -1: "worse with {}",
    }
    parts = []
    for direction, text in words.items():
        names = [name for name, comparison in stage1 if comparison.direction == direction]
        parts += [text.format(listed(names))] if names else []
    first = "; ".join(parts) or "Whether images follow their captions was not measured"
    held_out = compare(evidence, arms.finetuned(), base, "held_out_score")
    moved = {
        1: "Fine-tuning moved images towards the preference.",
        0: "Fine-tuning did not measurably move images towards the preference.",
        -1: "Fine-tuning moved images away from the preference.",
    }
    second = moved[held_out.direction] if held_out else "Fine-tuning was not measured."
    if held_out and held_out.direction > 0 and collapsed(evidence, arms.finetuned()):
        second = second.replace(".", ", but they may have collapsed.")
    return f"{first[0].upper()}{first[1:]}. {second}"
