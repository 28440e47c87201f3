"""The calibrations' images, as PNG files: whether judges rank their preference and validators know true from false.

The stages draw them, so that they are there when a judge is found unfit; the report shows them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from t2i_feedback.calibration import discrimination
from t2i_feedback.foundation import files
from t2i_feedback.foundation.rows import CalibrationRow
from t2i_feedback.foundation.traits import directions
from t2i_feedback.reporting.style import FIRST, GREY, INK, RIGHT, SECOND, STYLE, WRONG

if TYPE_CHECKING:
    from t2i_feedback.calibration.claims import CalibratedValidator
    from t2i_feedback.calibration.sweeps import CalibratedJudge

JUDGES = ("sweeps", "retest", "paraphrases")  # names of the files, in the report's order
VALIDATORS = ("captions", "reliability", "threshold", "retest", "paraphrases")
DPI = 120
MARKERS = (FIRST[1], SECOND[1], "^", "D", "v")  # of the second askings; more of them begin again in the other colour
SCORES = ("score", 1.0, 10.0)  # what answers are called, and their range
P_YES, ITEMS = ("P(yes)", 0.0, 1.0), ("share of items", 0.0, 1.0)
WANTED = {1: "more is preferred", -1: "less is preferred", None: "not named by the preference"}
TRAITS = {
    "brightness": "factor on brightness",
    "contrast": "factor on contrast",
    "saturation": "factor on saturation",
    "blur": "Gaussian σ, pixels per 64 of width",
}


def draw_judges(found: Mapping[str, "CalibratedJudge"], preference: str, folder: Path) -> None:
    """The images of the report: one file for each question that was put to the judges."""
    swept = [row for one in found.values() for row in one.sweeps]
    correlations = {name: one.numbers for name, one in found.items()}
    sweeps(swept, directions(preference), correlations, folder / "sweeps.png")
    retests = {name: [one.retest.pairs] for name, one in found.items()}
    agreement(retests, SCORES, "asked again", folder / "retest.png")
    reworded = {name: [one.pairs for one in judge.paraphrases] for name, judge in found.items()}
    agreement(reworded, SCORES, "in other words", folder / "paraphrases.png")


def draw_validator(name: str, found: "CalibratedValidator", folder: Path) -> None:
    """The images of the report: one file for each question that was put to the validator."""
    answers = {"true": found.true} | found.by_alteration
    shares = {key.partition("_")[2]: share for key, share in found.shares_right.items() if share is not None}
    counted = {key: (share, len(answers[key])) for key, share in shares.items()}
    answers_are = ITEMS if found.questions else P_YES
    captions(name, counted, f"{answers_are[0]} from {found.threshold:g}", folder / "captions.png")
    reliability(name, found.true, found.false, answers_are[0], folder / "reliability.png")
    threshold(name, found.true, found.false, answers_are[0], folder / "threshold.png")
    agreement({name: [found.retest.pairs]}, answers_are, "asked again", folder / "retest.png")
    reworded = {name: [one.pairs for one in found.paraphrases]}
    agreement(reworded, answers_are, "in other words", folder / "paraphrases.png")


# ------------------------------------------------------------------------------------------------ one image each


@contextmanager
def _image(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[Any]:
    """Axes [rows, columns]; written to `path` in one step on leaving. `size` in inches."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure.subplots(rows, columns, squeeze=False)
        with files.whole(path) as partial:
            figure.savefig(partial, format="png", dpi=DPI, metadata={"Software": None})


def sweeps(
    rows: Sequence[CalibrationRow],
    directions: Mapping[Any, int],
    correlations: Mapping[str, Mapping[str, float | None]],
    path: Path,
) -> None:
    """Mean score along every sweep, with standard errors; each judge's rank correlation stands in the legend."""
    with _image(path, 2, 2, (8.4, 5.8)) as axes:
        for place, (trait, unit) in zip(axes.flat, TRAITS.items(), strict=True):
            for (judge, known), look in zip(correlations.items(), (FIRST, SECOND), strict=False):
                points = _means([row for row in rows if row.judge == judge and row.trait == trait])
                correlation = "" if known.get(trait) is None else f", rank correlation {known[trait]:.2f}"
                label = judge + (correlation if points[0] else ", no valid answers")
                colour, marker, line = look
                place.errorbar(*points, color=colour, marker=marker, linestyle=line, capsize=2, label=label)
            place.set_title(f"{trait.capitalize()}: {WANTED[directions.get(trait)]}")
            place.set_xlabel(unit)
            place.set_ylabel("mean score")
            place.margins(y=0.25)
            place.legend(loc="best")


def _means(rows: Sequence[CalibrationRow]) -> tuple[list[float], list[float], list[float]]:
    """Levels, mean scores and their standard errors; answers that were not valid are left out."""
    by_level: dict[float, list[float]] = {}
    for row in rows:
        if row.score is not None:
            by_level.setdefault(row.level, []).append(row.score)
    levels = sorted(by_level)
    scores = [by_level[level] for level in levels]
    errors = [float(np.std(some, ddof=1) / len(some) ** 0.5) if len(some) > 1 else 0.0 for some in scores]
    return levels, [float(np.mean(some)) for some in scores], errors


def agreement(
    models: Mapping[str, Sequence[Sequence[tuple[float, float]]]],
    answers: tuple[str, float, float],
    second: str,
    path: Path,
) -> None:
    """First answers against second ones, a panel per model, a mark per kind of second asking; the line is equality.

    A model may have no second asking at all: nobody asked it.
    """
    name, low, high = answers
    with _image(path, 1, len(models), (0.6 + 3.9 * len(models), 4.0)) as axes:
        for place, (model, askings) in zip(axes.flat, models.items(), strict=True):
            place.plot([low, high], [low, high], color=GREY, linewidth=1)
            looks = zip(cycle((FIRST[0], SECOND[0])), cycle(MARKERS), strict=False)
            for number, (pairs, (colour, marker)) in enumerate(zip(askings, looks, strict=False), 1):
                label = f"paraphrase {number}" if len(askings) > 1 else None
                points = np.array(pairs).reshape(-1, 2)
                place.plot(*points.T, marker, color=colour, alpha=0.6, label=label)
            distances = [abs(a - b) for pairs in askings for a, b in pairs]
            nothing = "no valid answers" if askings else "not asked"
            place.set_title(f"{model}: " + (f"mean difference {np.mean(distances):.2g}" if distances else nothing))
            place.set_xlabel(f"{name}, first asked")
            place.set_ylabel(f"{name}, {second}")
            place.set_xlim(low - (high - low) / 40, high + (high - low) / 40)
            place.set_ylim(*place.get_xlim())
            place.set_aspect("equal")
            if len(askings) > 1:
                place.legend(loc="best")


def captions(name: str, shares: Mapping[str, tuple[float, int]], accepted: str, path: Path) -> None:
    """Share of right answers for each kind of caption, with their numbers: `true`, and what was altered.

    `accepted` says when a caption is: `P(yes) from 0.5`.
    """
    labels = {"true": "true: accepted", "other": "another image’s: rejected"}
    with _image(path, 1, 1, (6.4, 1.2 + 0.36 * len(shares))) as axes:
        place = axes[0, 0]
        for row, (kind, (share, count)) in enumerate(shares.items()):
            place.barh(row, share, color=RIGHT if kind == "true" else FIRST[0], height=0.7)
            place.text(min(share, 1) + 0.01, row, f"{share:.0%} of {count}", va="center")
        place.set_yticks(range(len(shares)), [labels.get(kind, f"{kind} altered: rejected") for kind in shares])
        place.set_ylim(len(shares) - 0.4, -0.6)
        place.set_xlim(0, 1.2)
        place.set_xticks([0, 0.25, 0.5, 0.75, 1])
        place.grid(axis="y", visible=False)
        place.set_title(f"{name}: right answers; accepted is {accepted}")


def reliability(name: str, true: Sequence[float], false: Sequence[float], answer: str, path: Path) -> None:
    """Stated against observed, and how the answer is spread over true and altered captions; both kinds weigh alike.

    `answer` is what it is called: `P(yes)`. A dot's area is its bin's weight; beside it stands the number of answers.
    """
    with _image(path, 1, 2, (8.6, 4.0)) as axes:
        left, right = axes[0]
        left.plot([0, 1], [0, 1], color=GREY, linewidth=1)
        left.set_title(f"{name}: {answer} and truth")
        left.set_xlabel(f"mean {answer}")
        left.set_ylabel("share of captions that are true")
        left.set_xlim(0, 1)
        left.set_ylim(-0.04, 1.1)
        right.set_xlabel(answer)
        right.set_ylabel("share of its kind")
        edges = np.linspace(0, 1, discrimination.BINS + 1)
        for kind, values, colour, hatch in (("altered", false, WRONG, "//"), ("true", true, RIGHT, "")):
            if values:
                weights = np.full(len(values), 1 / len(values))
                look: dict[str, Any] = {"color": colour, "alpha": 0.55, "hatch": hatch, "edgecolor": "white"}
                right.hist(values, edges, weights=weights, label=f"{kind} ({len(values)})", **look)
        if true and false:
            bins = discrimination.reliability(true, false)
            sizes = [20 + 400 * b.weight for b in bins]
            left.scatter([b.stated for b in bins], [b.observed for b in bins], sizes, color=FIRST[0], clip_on=False)
            for b in bins:
                where = (b.stated, b.observed)
                left.annotate(str(b.count), where, (9, 7), textcoords="offset points", fontsize=8)
            right.set_title(f"AUC {discrimination.auc(true, false):.3f}")
            right.legend(loc="upper center")


def threshold(name: str, true: Sequence[float], false: Sequence[float], answer: str, path: Path) -> None:
    """Balanced accuracy, and its two halves, for every threshold of the answer; the best is marked."""
    grid = np.linspace(0, 1, 201)
    with _image(path, 1, 1, (6.4, 3.8)) as axes:
        place = axes[0, 0]
        place.set_title(f"{name}: accuracy by threshold")
        place.set_xlabel(f"accepted from this {answer} on")
        place.set_ylim(0, 1.05)
        if not true or not false:
            return
        place.plot(grid, [np.mean(np.asarray(true) >= t) for t in grid], color=RIGHT, label="true captions accepted")
        rejected = [np.mean(np.asarray(false) < t) for t in grid]
        place.plot(grid, rejected, color=WRONG, linestyle="--", label="altered captions rejected")
        both = [discrimination.balanced_accuracy(true, false, t) for t in grid]
        place.plot(grid, both, color=INK, linewidth=2.2, label="balanced accuracy")
        best = discrimination.best_threshold(true, false)
        accuracy = discrimination.balanced_accuracy(true, false, best)
        place.axvline(best, color=GREY, linestyle=":", label=f"best: {best:.2f}, with {accuracy:.3f}")
        place.legend(loc="lower center")
