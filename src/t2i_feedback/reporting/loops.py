"""The validator's loop in tables, plots and sentences: how often it accepts, and what its feedback does."""

from collections.abc import Sequence

from t2i_feedback.reporting import comparisons, plots, tables, verdict
from t2i_feedback.reporting.evidence import Evidence, MeasuredArm
from t2i_feedback.reporting.plots import Plot
from t2i_feedback.reporting.tables import Table, number, percent


def loop_table(run: Sequence[MeasuredArm]) -> Table | None:
    lines = [
        (
            arm.label,
            str(row.round),
            str(row.drawn),
            percent(row.accepted / row.judged) if row.judged else tables.NOTHING,
            str(row.drawn - row.judged),
            number(row.alignment, 3),
        )
        for arm in run
        if arm.arm.draws_several
        for row in comparisons.rounds(arm)
    ]
    columns = ("arm", "round", "images", "accepted of those judged", "without verdict", "alignment")
    return tables.plain_table(columns, lines, sort="rows") if lines else None


def loop_plots(run: Sequence[MeasuredArm]) -> list[Plot]:
    loops = {arm.name: comparisons.rounds(arm) for arm in run if arm.arm.has_rounds and arm.rounds}
    return [plots.accepted_by_round(loops)] if loops else []


def loop_sentences(evidence: Evidence) -> list[str]:
    """How often it accepts, whether it tells good images from bad, and whether its feedback helps the next one."""
    sentences = [
        f"{arm.label.capitalize()}: {percent(arm.metrics.get('acceptance_rate'))} of the captions end with an accepted "
        f"image, after {tables.measured(tables.BY_KEY['rounds_mean'], arm.metrics)} rounds."
        for arm in evidence.arms.values()
        if arm.arm.has_rounds
    ]
    for name, split in comparisons.splits(evidence).items():
        sentences.append(
            f"{evidence.arms[name].label.capitalize()}: the {split.accepted} accepted images have alignment "
            f"{number(split.accepted_alignment, 3)}, the {split.rejected} rejected ones "
            f"{number(split.rejected_alignment, 3)} ({verdict.interval_text(split.interval, 3)})."
        )
    for effect in comparisons.feedback_effects(evidence):
        helps = {1: "feedback helps", 0: "no measurable difference", -1: "feedback hurts"}[effect.direction]
        sentences.append(
            f"Second images of {effect.interval.n} captions, drawn from the same noise: with feedback in the prompt "
            f"alignment {number(effect.arm_value, 3)}, without {number(effect.base_value, 3)} "
            f"({verdict.interval_text(effect.interval, 3)}): {helps}."
        )
    return sentences
