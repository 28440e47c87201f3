"""Numbers as text: how a metric is written, and the report's tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from t2i_feedback.arms import drawing_several
from t2i_feedback.reporting import paper, protocols
from t2i_feedback.reporting.evidence import MeasuredArm

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Metric:
    """How a number of an arm is named and written."""

    key: str
    label: str
    digits: int
    better: str = ""  # "higher", "lower" or, where that depends on the preference, nothing
    spread: str = ""  # key of its ±
    invalid: str = ""  # key of the share of answers that were not valid

    @property
    def title(self) -> str:
        return f"{self.label} {ARROWS[self.better]}".strip()


ARROWS = {"higher": "↑", "lower": "↓", "": ""}
METRICS: Mapping[str, tuple[Metric, ...]] = {
    "Fidelity to the real images": (
        Metric("fid", "FID", 2, "lower", spread="fid_std"),
        Metric("is", "Inception Score", 2, "higher", spread="is_std"),
        Metric("kid", "KID", 3, "lower", spread="kid_std"),
        Metric("precision", "precision", 3, "higher"),
        Metric("recall", "recall", 3, "higher"),
        Metric("diversity", "diversity", 3, "higher"),
    ),
    "What the caption asks for": (
        Metric("alignment", "alignment", 3, "higher"),
        Metric("whole", "whole caption right", 3, "higher"),
        Metric("clip_score", "CLIPScore", 3, "higher"),
        Metric("vqa_score", "VQAScore", 3, "higher", invalid="invalid_vqa"),
        Metric("question_alignment", "items that the validator finds", 3, "higher", invalid="invalid_questions"),
    ),
    "Light and focus": (
        Metric("brightness", "brightness", 1),
        Metric("contrast", "contrast", 1),
        Metric("sharpness", "sharpness", 3),
    ),
    "What the models say": (
        Metric("judge_score", "judge’s score", 2, "higher", invalid="invalid_judge"),
        Metric("held_out_score", "held-out judge’s score", 2, "higher", invalid="invalid_held_out"),
        Metric("p_yes", "validator’s P(yes)", 3, "higher", invalid="invalid_validator"),
    ),
    "The loop": (
        Metric("acceptance_rate", "accepted by the validator", 3, "higher"),
        Metric("rounds_mean", "rounds", 2, "lower", spread="rounds_std"),
        Metric("tokens_lost", "prompt tokens beyond the window", 2, "lower"),
    ),
}
BY_KEY = {metric.key: metric for group in METRICS.values() for metric in group}

STAGE1_COLUMNS = ("Prompt enhancer", "Validator", "FID ↓", "IS ↑", "Iteration")  # as the paper has them
STAGE2_COLUMNS = ("Model", "FID ↓", "IS ↑", "Contrast ↓", "Brightness ↓")


@dataclass(frozen=True)
class Row:
    cells: tuple[str, ...]
    heading: bool = False  # a line that names a group of rows


@dataclass(frozen=True)
class Table:
    """`columns` name the cells of each row; the first cell of a row names the row.

    A reader may `sort` its "rows" by a column, or its "columns" by a row where each row is another measure.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    caption: str = ""
    note: str = ""
    sort: str = ""


def glossary() -> dict[str, str]:
    """What the words of the arms' table mean."""
    several = [arm.label for arm in drawing_several()]
    choosing = [arm.label for arm in drawing_several() if not arm.has_rounds]
    return {
        "alignment": "share of what the caption states that an oracle sees in the image, strictly: an object that "
        "nobody asked for counts against it. The oracle measures only; it is neither validator nor judge.",
        "whole caption right": "share of images that show everything the caption states and nothing uninvited.",
        "CLIPScore": "2.5 max(cos, 0) of CLIP's features of image and caption (Hessel et al. 2021).",
        "VQAScore": "P(yes) when a model is asked whether the image shows the caption (Lin et al. 2024).",
        "items that the validator finds": "share of what the caption states, asked item by item.",
        "brightness, contrast": "mean and standard deviation of the 0–255 luma (Rec. 601), averaged over images.",
        "sharpness": "1 − blur_effect of scikit-image: 0 is blurred, 1 is sharp; an image that is darkened and rounded "
        "to 8 bits gains a little by itself.",
        "diversity": "mean distance between an arm’s images in the extractor's features.",
        "validator’s P(yes)": "how surely the validator finds the caption in the image. It chose what "
        f"{listed(several)} end with, so it flatters them; of the other arms it was asked for measurement only.",
        "judge’s score": "how well images meet the preference, 1–10, by the judge whose scores were the reward. "
        "The held-out judge rewarded nothing in training.",
        "invalid": "share of a model’s answers that were refused, unparseable, cut off or lost. They are left out, "
        "never counted as a score or a verdict.",
        "rounds": "enhance, generate, validate passes per caption: the paper’s Iteration; "
        f"for {listed(choosing)}, images drawn.",
    }


def listed(names: Sequence[str]) -> str:
    """ "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def number(value: float | None, digits: int, spread: float | None = None) -> str:
    """ "0.71", "24.95 ± 0.51", or a dash for None."""
    if value is None:
        return NOTHING
    text = f"{value:.{digits}f}".replace("-", MINUS)
    return text if spread is None else f"{text} ± {spread:.{digits}f}"


def signed(value: float, digits: int) -> str:
    """ "+0.12" or "−3.4"; a change that rounds to nothing has no sign."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", MINUS) if float(text) else f"{0:.{digits}f}"


def percent(share: float | None) -> str:
    """ "0.4 %"; whole per cents from 10 on."""
    if share is None:
        return NOTHING
    return f"{100 * share:.{0 if share >= 0.0995 else 1}f} %"


def measured(metric: Metric, metrics: Mapping[str, float]) -> str:
    """One cell: the number and its spread."""
    return number(metrics.get(metric.key), metric.digits, metrics.get(metric.spread))


def arms_table(arms: Iterable[MeasuredArm]) -> Table:
    """Metrics down, arms across, with the share of invalid answers below a judged metric.

    A metric that no arm has is left out, and so is a group without metrics.
    """
    arms = list(arms)
    rows: list[Row] = []
    for group, metrics in METRICS.items():
        kept: list[Row] = []
        for metric in metrics:
            if any(arm.metrics.get(metric.key) is not None for arm in arms):
                kept.append(Row((metric.title, *(measured(metric, arm.metrics) for arm in arms))))
                if metric.invalid:
                    invalid = (percent(arm.metrics.get(metric.invalid)) for arm in arms)
                    kept.append(Row((f"{NOTHING} invalid answers", *invalid)))
        if kept:
            rows += [Row((group,), heading=True), *kept]
    counts = [int(arm.metrics["n"]) for arm in arms if "n" in arm.metrics]
    images = f"{counts[0]} images per arm. " if counts and len(set(counts)) == 1 else ""
    return Table(
        ("measure", *(arm.label for arm in arms)),
        tuple(rows),
        sort="columns",
        note=f"{images}↑ higher is better, ↓ lower is better; no arrow where it depends on the preference. "
        "↔ sorts the arms by a row.",
    )


def cards_table(arms: Iterable[MeasuredArm]) -> Table | None:
    """Protocol cards beside what the paper says of its own; arms that differ in a line are named in it."""
    cards = {arm.label: arm.card for arm in arms if arm.card}
    if not cards:
        return None
    keys = list(dict.fromkeys(key for card in cards.values() for key in card))
    rows = []
    for key in keys:
        values = [_plain(card.get(key)) for card in cards.values()]
        each = "; ".join(f"{arm}: {value}" for arm, value in zip(cards, values, strict=True))
        ours = values[0] if len(set(values)) == 1 else each
        rows.append(Row((key.replace("_", " "), ours, paper.CARD.get(key, paper.SILENT))))
    return Table(("protocol", "ours", "the paper’s"), tuple(rows))


def number_cards(run: Sequence[MeasuredArm]) -> Table | None:
    """The protocol card of every single number that some arm has: what of the arms' card decides it."""
    if not run or not run[0].card:
        return None
    rows = []
    for key in (key for key in BY_KEY if key in protocols.DECIDES and any(key in arm.metrics for arm in run)):
        own = protocols.card_of(key, run[0].card)
        parts = [f"{name.replace('_', ' ')}: {_plain(value)}" for name, value in own.items()]
        rows.append(Row((BY_KEY[key].label, "; ".join(parts))))
    return Table(("number", "made by"), tuple(rows))


def apart_table(arm: MeasuredArm, alike: MeasuredArm) -> Table:
    """An arm that must not stand beside the others, by itself, and what differs from them."""
    found = protocols.differences(alike.card, arm.card).items()
    parts = [f"{key.replace('_', ' ')} ({_plain(theirs)} there, {_plain(ours)} here)" for key, (theirs, ours) in found]
    table = arms_table([arm])
    note = f"Not comparable with the arms above, which differ in: {'; '.join(parts)}."
    return Table(table.columns, table.rows, f"{arm.label}, measured under another protocol", note)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return NOTHING if value is None else str(value)


def paper_stage1() -> Table:
    rows = []
    for enhancer, validator, fid, fid_std, score, score_std, rounds, spread in paper.STAGE1:
        iteration = number(rounds, 0 if spread is None else 2, spread)
        rows.append(Row((enhancer, validator, number(fid, 2, fid_std), number(score, 2, score_std), iteration)))
    return Table(STAGE1_COLUMNS, tuple(rows), caption="The paper, stage 1", sort="rows")


def our_stage1(arms: Iterable[MeasuredArm], mllm: str) -> Table:
    """Our arms under the paper's columns."""
    rows = []
    for arm in arms:
        names = arm.arm.in_table1(mllm)
        if names:
            cells = [measured(BY_KEY[key], arm.metrics) for key in ("fid", "is")]
            rounds = measured(BY_KEY["rounds_mean"], arm.metrics) if arm.arm.draws_several else "1"
            rows.append(Row((*names, *cells, rounds)))
    return Table(STAGE1_COLUMNS, tuple(rows), caption="Ours, stage 1", sort="rows")


def paper_stage2() -> Table:
    rows = [
        Row((model, number(fid, 2), number(score, 2, spread), number(contrast, 2), number(brightness, 2)))
        for model, fid, score, spread, contrast, brightness in paper.STAGE2
    ]
    return Table(STAGE2_COLUMNS, tuple(rows), caption="The paper, stage 2", sort="rows")


def our_stage2(arms: Iterable[MeasuredArm], model: str) -> Table:
    rows = []
    for arm in arms:
        name = arm.arm.in_table2(model)
        if name:
            fidelity = [measured(BY_KEY[key], arm.metrics) for key in ("fid", "is")]
            light = [number(arm.metrics.get(key), 2) for key in ("contrast", "brightness")]
            rows.append(Row((name, *fidelity, *light)))
    return Table(STAGE2_COLUMNS, tuple(rows), caption="Ours, stage 2", sort="rows")


def plain_table(columns: Sequence[str], lines: Iterable[Sequence[str]], sort: str = "") -> Table:
    return Table(tuple(columns), tuple(Row(tuple(line)) for line in lines), sort=sort)
