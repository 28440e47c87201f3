"""The outcome in words, built from the numbers: which arms helped, by how much, how surely."""

from collections.abc import Sequence
from dataclasses import dataclass

from t2i_feedback.evaluation.intervals import Interval
from t2i_feedback.reporting.comparisons import KEPT_SHARE, Comparison, compare, diversity_ratio
from t2i_feedback.reporting.evidence import LABELS, Arm, Evidence
from t2i_feedback.reporting.tables import number, percent, signed

STAGE1_ARMS = ("enhanced", "best_of_n", "validated", "combined")
OUTCOMES = {1: "helps", 0: "no measurable effect", -1: "hurts"}


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
    found = [stage1_verdict(evidence, arm) for arm in STAGE1_ARMS]
    found += [feedback_verdict(evidence), finetuned_verdict(evidence)]
    return [verdict for verdict in found if verdict]


def stage1_verdict(evidence: Evidence, arm: str) -> Verdict | None:
    """By alignment with the caption, where that can be measured; else the arm's FID stands beside raw’s."""
    if arm not in evidence.arms or "raw" not in evidence.arms:
        return None
    comparison = compare(evidence, arm, "raw", "alignment")
    if comparison:
        text = f"Alignment {change_text(comparison, 3)}."
        return Verdict(f"{LABELS[arm].capitalize()} against raw", OUTCOMES[comparison.direction], text)
    fids = [_fid(evidence.arms[name]) for name in (arm, "raw")]
    text = f"Alignment cannot be measured for this data set; FID is {fids[0]}, raw’s is {fids[1]}."
    return Verdict(f"{LABELS[arm].capitalize()} against raw", "not measured", text)


def _fid(arm: Arm) -> str:
    return number(arm.metrics.get("fid"), 2, arm.metrics.get("fid_std"))


def change_text(comparison: Comparison, digits: int) -> str:
    before, after = number(comparison.base_value, digits), number(comparison.arm_value, digits)
    return f"goes from {before} to {after} ({interval_text(comparison.interval, digits)})"


def feedback_verdict(evidence: Evidence) -> Verdict | None:
    """Does the loop beat drawing as many pictures and choosing?"""
    comparison = compare(evidence, "validated", "best_of_n", "alignment")
    if not comparison:
        return None
    told = {
        1: "Feedback does more than choosing among as many pictures",
        0: "Feedback does no measurably better than choosing among as many pictures",
        -1: "Choosing among as many pictures does better than feedback",
    }[comparison.direction]
    return Verdict(
        "Validated against best of n",
        OUTCOMES[comparison.direction],
        f"{told}: alignment {number(comparison.arm_value, 3)} against {number(comparison.base_value, 3)} "
        f"({interval_text(comparison.interval, 3)}).",
    )


def finetuned_verdict(evidence: Evidence) -> Verdict | None:
    """By the held-out judge, which training never saw; and whether the captions are still drawn."""
    held_out = compare(evidence, "finetuned", "raw", "held_out_score")
    if not held_out:
        return None
    text = f"The held-out judge’s score {change_text(held_out, 2)}; {collapse_text(evidence)}."
    return Verdict("Fine-tuned against raw", OUTCOMES[held_out.direction], text)


def collapse_text(evidence: Evidence) -> str:
    """Whether alignment and diversity stayed at KEPT_SHARE of raw’s or above."""
    alignment = compare(evidence, "finetuned", "raw", "alignment", ratio=True)
    shares = [alignment.interval.value if alignment else None, diversity_ratio(evidence)]
    known = [(name, share) for name, share in zip(("alignment", "diversity"), shares, strict=True) if share is not None]
    if not known:
        return "whether the pictures collapsed was not measured"
    listed = " and ".join(f"{percent(share)} of raw’s {name}" for name, share in known)
    kept = all(share >= KEPT_SHARE for _, share in known)
    return f"it keeps {listed}" + ("" if kept else f", less than the {percent(KEPT_SHARE)} that rule out a collapse")


def lead(evidence: Evidence) -> str:
    """One paragraph: what was run, and what helped."""
    p = evidence.params
    ways, captions, pictures = len(evidence.arms), len(evidence.captions), p.finetune.pictures_per_epoch
    return (
        f"{p.model.name} drew {captions} captions of {p.data.source} in {ways} ways, from the same noise in each "
        f"({p.model.size} × {p.model.size} pixels, {p.model.steps} steps, guidance {p.model.guidance:g}). In stage 1, "
        f"the MLLM {p.stage1.mllm} rewrites captions and accepts or rejects pictures, for {p.stage1.max_rounds} rounds "
        f"at most. In stage 2, the judge {p.finetune.judge} plays a user who likes “{p.finetune.preference}”, and its "
        f"scores fine-tune the model by DDPO over {p.finetune.epochs} epochs of {pictures} pictures; the judge "
        f"{p.evaluate.judge}, unused in training, checks the outcome."
    )


def headline(evidence: Evidence) -> str:
    """Two sentences: which arms follow captions better than raw, and whether the preference was met."""
    stage1 = [(LABELS[arm], c) for arm in STAGE1_ARMS if (c := compare(evidence, arm, "raw", "alignment"))]
    words = {
        1: "Pictures follow their captions better than raw’s with {}",
        0: "no measurable difference with {}",
        -1: "worse with {}",
    }
    parts = []
    for direction, text in words.items():
        names = [name for name, comparison in stage1 if comparison.direction == direction]
        parts += [text.format(_listed(names))] if names else []
    first = "; ".join(parts) or "Whether pictures follow their captions was not measured"
    held_out = compare(evidence, "finetuned", "raw", "held_out_score")
    moved = {
        1: "Fine-tuning moved pictures towards the preference.",
        0: "Fine-tuning did not measurably move pictures towards the preference.",
        -1: "Fine-tuning moved pictures away from the preference.",
    }
    second = moved[held_out.direction] if held_out else "Fine-tuning was not measured."
    return f"{first[0].upper()}{first[1:]}. {second}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
