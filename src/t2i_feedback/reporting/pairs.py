"""Arms compared caption by caption, as tables, plots and sentences."""

from collections.abc import Sequence

from t2i_feedback import arms
from t2i_feedback.reporting import comparisons, plots, tables, verdict
from t2i_feedback.reporting.comparisons import Comparison
from t2i_feedback.reporting.evidence import Evidence
from t2i_feedback.reporting.plots import Plot
from t2i_feedback.reporting.preferred import Tally
from t2i_feedback.reporting.tables import Table, number, percent, signed

DIGITS = {"brightness": 1, "contrast": 1, "judge_score": 2, "held_out_score": 2}
READING = {1: "higher", 0: "no measurable difference", -1: "lower"}
KEPT = {True: "kept", False: "lost"}  # for ratios


def comparison_table(found: Sequence[Comparison]) -> Table | None:
    if not found:
        return None
    lines = []
    for c in found:
        digits = DIGITS.get(c.measure, 3)
        name = tables.BY_KEY[c.measure].label if c.measure in tables.BY_KEY else c.measure.replace("_", " ")
        joint = "÷" if c.is_ratio else tables.MINUS
        write = number if c.is_ratio else signed
        low, high = (write(x, digits) for x in (c.interval.low, c.interval.high))
        lines.append(
            (
                f"{name}: {c.arm.label} {joint} {c.base.label}",
                number(c.arm_value, digits),
                number(c.base_value, digits),
                write(c.interval.value, digits),
                f"{low} to {high}",
                str(c.interval.n),
                KEPT[c.interval.value >= comparisons.KEPT_SHARE] if c.is_ratio else READING[c.direction],
            )
        )
    columns = ("compared", "first", "second", "difference or ratio", "95 % interval", "captions", "the first is")
    return tables.plain_table(columns, lines, sort="rows")


def kept_sentences(evidence: Evidence) -> str:
    """Whether fine-tuning kept alignment and diversity."""
    asked = f"(At least {percent(comparisons.KEPT_SHARE)} of either is asked for.)"
    sentences = []
    for arm in (arm for arm in arms.ARMS if arm.may_collapse):
        if arm.name not in evidence.arms or arms.base().name not in evidence.arms:
            sentences.append(f"The {arm.label} arm was not run.")
        else:
            text = verdict.collapse_text(evidence, arm)
            sentences.append(f"{text[0].upper()}{text[1:]}. {asked}")
    return " ".join(sentences)


def arm_plots(evidence: Evidence) -> list[Plot]:
    titles = {
        "alignment": "Alignment with the caption, 95 % interval",
        "held_out_score": "Held-out judge's score for the preference",
    }
    means = {measure: comparisons.arm_means(evidence, measure) for measure in titles}
    found = [plots.arm_means(means[measure], title) for measure, title in titles.items() if means[measure]]
    curves = {name: arm.fid_by_n for name, arm in evidence.arms.items() if arm.fid_by_n}
    return [*found, plots.fid_by_n(curves)] if curves else found


def preferred_sentence(found: Tally | None) -> str:
    """What came of it, in words; empty when nobody was asked."""
    if found is None:
        return ""
    decided = found.before + found.after
    start = f"A person was shown {decided + found.neither} held-out captions, before and after fine-tuning, blind: "
    if found.share is None or found.low is None or found.high is None:
        return f"{start}neither image was ever preferred."
    ties = f"; {found.neither} were ties" if found.neither else ""
    return (
        f"{start}the image after it was preferred {found.after} times of {decided}{ties} "
        f"({percent(found.share)}, 95 % interval {percent(found.low)} to {percent(found.high)})."
    )
