"""The report: evidence in, one HTML page out that needs nothing but itself."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from t2i_feedback import arms
from t2i_feedback.reporting import alarm, comparisons, grids, paper, plots, stories, tables, verdict
from t2i_feedback.reporting.comparisons import Comparison
from t2i_feedback.reporting.evidence import Evidence, MeasuredArm
from t2i_feedback.reporting.plots import Plot
from t2i_feedback.reporting.tables import Table, number, percent, signed

TEMPLATE = "report.html.j2"
DIGITS = {"brightness": 1, "contrast": 1, "judge_score": 2, "held_out_score": 2}
READING = {1: "higher", 0: "no measurable difference", -1: "lower"}
KEPT = {True: "kept", False: "lost"}  # for ratios
SHOWN = {  # a calibration's image -> what it shows
    "sweeps": "Mean scores along the sweeps of every trait, with standard errors.",
    "retest": "First answers against those to the same questions asked again, in another order and other batches.",
    "paraphrases": "First answers against those to the same questions in other words.",
    "captions": "Share of right answers for true captions and for each kind of altered ones.",
    "reliability": "Share of true captions by the answer, and the spread of answers over true and altered captions.",
    "threshold": "Accuracy by threshold.",
}
CURVES = {
    "kl": "KL to the base model",
    "diversity": "Diversity within a prompt",
    "brightness": "Brightness",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
}


@dataclass(frozen=True)
class GridRow:
    caption: str
    real: str  # data URL
    images: tuple[str, ...]  # data URLs, in the order of the arms
    notes: tuple[str, ...]


def render(evidence: Evidence) -> str:
    """The whole page. Jinja escapes every text in it."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found = verdict.verdicts(evidence)
    run = list(evidence.arms.values())
    p = evidence.settings
    return environment.get_template(TEMPLATE).render(
        stamp=p.report.stamp,
        lead=verdict.lead(evidence),
        headline=verdict.headline(evidence),
        verdicts=found,
        arms=tables.arms_table(run),
        arm_plots=arm_plots(evidence),
        glossary=tables.glossary(),
        stage1=comparison_table(comparisons.stage1(evidence)),
        stage2=comparison_table(comparisons.stage2(evidence)),
        kept=kept_sentences(evidence),
        loops=loop_table(run),
        loop_plots=loop_plots(run),
        loop_sentences=loop_sentences(evidence),
        paper_tables=[tables.paper_stage1(), tables.our_stage1(run, p.mllm)],
        paper_tables2=[tables.paper_stage2(), tables.our_stage2(run, p.model)],
        apart=[tables.apart_table(arm, run[0]) for arm in evidence.apart.values()],
        cards=tables.cards_table(run),
        number_cards=number_cards(run),
        paper_protocol=paper.PROTOCOL,
        extractor=p.extractor,
        arm_labels=[arm.label for arm in run],
        grid=image_grid(evidence, run, grids.spread_out(grids.shared_captions(evidence), p.report.grid)),
        stories=told(evidence),
        told_arm=told_arm().label,
        pairs=pairs(evidence),
        curves=[plots.reward_curve(evidence.history), *epoch_curves(evidence)] if evidence.history else [],
        alarms=alarm.alarms(evidence.history, p.epochs),
        reward_text=reward_text(evidence),
        feedback_text=feedback_text(evidence),
        feedback_curves=[plots.reward_by_calls(evidence.history)] if evidence.history else [],
        judge_plots=[_image(name, path) for name, path in evidence.judge_plots.items()],
        judges=numbers_table("judge", judge_numbers(evidence)),
        validator_plots=[_image(name, path) for name, path in evidence.validator_plots.items()],
        validator=numbers_table("validator", {p.mllm: evidence.validator_metrics}),
        validator_text=validator_text(evidence),
        preference=p.preference,
        seed=p.seed,
    )


# ------------------------------------------------------------------------------------------------ comparisons


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
    return tables.plain_table(columns, lines)


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


def number_cards(run: Sequence[MeasuredArm]) -> Table | None:
    """Of every number that some arm has."""
    if not run or not run[0].card:
        return None
    return tables.number_cards(run[0].card, [key for key in tables.BY_KEY if any(key in arm.metrics for arm in run)])


# ------------------------------------------------------------------------------------------------ the loop


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
    return tables.plain_table(columns, lines) if lines else None


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


# ------------------------------------------------------------------------------------------------ images


def image_grid(evidence: Evidence, shown: Sequence[MeasuredArm], caption_ids: Sequence[int]) -> list[GridRow]:
    rows = []
    for caption_id in caption_ids:
        caption = evidence.captions[caption_id]
        rows.append(
            GridRow(
                caption.caption,
                grids.data_url(evidence.dataset / caption.image),
                tuple(grids.data_url(arm.folder / arm.images[caption_id].image) for arm in shown),
                tuple(_note(arm, caption_id) for arm in shown),
            )
        )
    return rows


def _note(arm: MeasuredArm, caption_id: int) -> str:
    """A line under an image: its alignment if measured."""
    row = arm.measured.get(caption_id)
    return "" if row is None or row.alignment is None else f"alignment {row.alignment:.2f}"


def told_arm() -> arms.Arm:
    """The arm whose rounds are told: the first that has any."""
    return next(arm for arm in arms.ARMS if arm.has_rounds)


def told(evidence: Evidence) -> list[stories.Story]:
    arm = evidence.arms.get(told_arm().name)
    return stories.tell(evidence, arm, evidence.settings.report.stories) if arm else []


def pairs(evidence: Evidence) -> list[GridRow]:
    """Base and fine-tuned images of other captions than the grid's, from equal noise."""
    both = (arms.base().name, arms.finetuned().name)
    if any(name not in evidence.arms for name in both):
        return []
    compared = [evidence.arms[name] for name in both]
    count = evidence.settings.report.grid
    shared = grids.shared_captions(evidence)
    shown = set(grids.spread_out(shared, count))
    others = [caption_id for caption_id in shared if caption_id not in shown] or shared
    rows = image_grid(evidence, compared, grids.spread_out(others, count))
    scores = [
        tuple(number(row.held_out_score if row else None, 1) for row in (arm.measured.get(i) for arm in compared))
        for i in grids.spread_out(others, count)
    ]
    return [GridRow(row.caption, row.real, row.images, note) for row, note in zip(rows, scores, strict=True)]


# ------------------------------------------------------------------------------------------------ training, judges


def reward_text(evidence: Evidence) -> str:
    if not evidence.history:
        return "Nothing was fine-tuned: there is no history of epochs."
    reward, second = (alarm.ends(evidence.history, field) for field in ("reward_mean", "held_out_mean"))
    changes = [("the reward", reward), ("the held-out judge's score", second)]
    moves = [f"{name} from {number(ends[0], 2)} to {number(ends[1], 2)}" for name, ends in changes if ends]
    masked = sum(row.masked for row in evidence.history)
    asked = sum(row.asked for row in evidence.history)
    return f"First against last epochs: {', '.join(moves)}. {masked} of {asked} scores were invalid and left out."


def feedback_text(evidence: Evidence) -> str:
    """How many of the images the user was asked about, which, and how well a surrogate could have answered."""
    if not evidence.history:
        return ""
    config = evidence.settings
    asked, drawn = sum(row.asked for row in evidence.history), config.images_per_epoch * len(evidence.history)
    text = f"The user was asked about {asked} of {drawn} images ({percent(asked / drawn)})"
    if config.acquisition == "all":
        return f"{text}: finetune.acquisition all."
    text += f", chosen by finetune.acquisition {config.acquisition}"
    errors = [row.surrogate_error for row in evidence.history if row.surrogate_error is not None]
    if not config.surrogate_weight:
        return f"{text}; nothing was learnt from the others."
    text += "; the others have scores of a surrogate, which count the less the less sure they are, also in the mean"
    if errors:
        text += (
            f". On each epoch’s answers, before it knew them, it was off by {number(errors[0], 2)} points at first "
            f"and by {number(errors[-1], 2)} at last (root mean square)"
        )
    return f"{text}."


def epoch_curves(evidence: Evidence) -> list[Plot]:
    return [plots.epoch_curve(evidence.history, field, title) for field, title in CURVES.items()]


def _image(name: str, path: Path) -> Plot:
    """A calibration's PNG file, whole."""
    return Plot("data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii"), SHOWN[name])


def judge_numbers(evidence: Evidence) -> dict[str, Mapping[str, object]]:
    found = evidence.calibration_metrics
    return {name: numbers for name, numbers in found.items() if isinstance(numbers, Mapping)}


def numbers_table(role: str, models: Mapping[str, Mapping[str, object]]) -> Table | None:
    """A calibration's numbers: one per row, a column per model; shares of invalid answers are written as per cents."""
    keys = list(dict.fromkeys(key for numbers in models.values() for key in numbers))
    names = {key: key.replace("_", " ").replace("auc", "AUC") for key in keys}
    lines = [(names[key], *(_cell(key, numbers.get(key)) for numbers in models.values())) for key in keys]
    return tables.plain_table((f"as {role}", *models), lines) if lines else None


def _cell(key: str, value: object) -> str:
    if not isinstance(value, (int, float)):
        return tables.NOTHING
    if key.endswith("invalid"):
        return percent(value)
    return str(int(value)) if key.endswith("captions") else number(value, 3)


def validator_text(evidence: Evidence) -> str:
    """The threshold in use beside the one that calibration finds best."""
    best, accuracy = (evidence.validator_metrics.get(f"best_threshold{end}") for end in ("", "_accuracy"))
    if best is None or accuracy is None:
        return ""
    settings = evidence.settings
    answer = "a share of items" if settings.questions else "P(yes)"
    return (
        f"Accepted is what has {answer} of {settings.threshold:g} or more (stage1.threshold). On these "
        f"images {number(best, 2)} would be best, with a balanced accuracy of {number(accuracy, 3)}; nothing sets it "
        "by itself."
    )
