"""Small plots as SVG. Each is narrow enough for a phone; several stand side by side on a screen."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from t2i_feedback import arms
from t2i_feedback.evaluation.intervals import Interval
from t2i_feedback.foundation.rows import EpochRow, FidRow
from t2i_feedback.reporting.comparisons import RoundSummary
from t2i_feedback.reporting.style import FIRST, INK, SECOND, STYLE

SIZE = (4.0, 2.7)  # inches


@dataclass(frozen=True)
class Plot:
    url: str  # data URL of the SVG
    text: str  # what a reader who cannot see it should know


class _Canvas:
    """`with _Canvas(title) as axes: ...`, then `.plot(text)`."""

    def __init__(self, title: str, height: float = SIZE[1]):
        self._context = matplotlib.rc_context(STYLE)
        self._title, self._height = title, height

    def __enter__(self) -> Axes:
        self._context.__enter__()
        self.figure = Figure(figsize=(SIZE[0], self._height), layout="constrained")
        axes = self.figure.subplots()
        axes.set_title(self._title)
        return axes

    def __exit__(self, *problem) -> None:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        self._context.__exit__(*problem)
        self.svg = buffer.getvalue()

    def plot(self, text: str) -> Plot:
        return Plot("data:image/svg+xml;base64," + base64.b64encode(self.svg).decode("ascii"), text)


def arm_means(means: Mapping[str, Interval], title: str, digits: int = 2) -> Plot:
    """One dot per arm with its 95 % interval."""
    canvas = _Canvas(title, height=0.9 + 0.34 * len(means))
    with canvas as axes:
        for row, (name, mean) in enumerate(means.items()):
            colour = arms.by_name(name).colour
            axes.plot([mean.low, mean.high], [row, row], color=colour, linewidth=2.2, solid_capstyle="round")
            axes.plot(mean.value, row, "o", color=colour, markersize=6)
        axes.set_yticks(range(len(means)), [arms.by_name(name).label for name in means])
        axes.set_ylim(len(means) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
    listed = (f"{arms.by_name(name).label} {mean.value:.{digits}f}" for name, mean in means.items())
    return canvas.plot(f"{title}: {', '.join(listed)}")


def fid_by_n(curves: Mapping[str, Sequence[FidRow]]) -> Plot:
    """FID of fewer images, one line per arm; bars are the spread over random subsets."""
    canvas = _Canvas("FID against the number of images")
    with canvas as axes:
        for name, rows in curves.items():
            arm = arms.by_name(name)
            numbers, fids, spreads = zip(*((row.n, row.fid, row.fid_std) for row in rows), strict=True)
            axes.errorbar(numbers, fids, spreads, marker=".", color=arm.colour, elinewidth=1, label=arm.label)
        axes.set_xlabel("images")
        axes.legend(loc="best")
    name, rows = next(iter(curves.items()))
    return canvas.plot(
        f"FID of {arms.by_name(name).label} is {rows[0].fid:.1f} with {rows[0].n} images and {rows[-1].fid:.1f} with "
        f"{rows[-1].n}: FIDs of different numbers of images cannot be compared."
    )


def reward_curve(history: Sequence[EpochRow]) -> Plot:
    """Mean scores of the judge that rewards and of the held-out judge; the band is the spread over images."""
    epochs = [row.epoch for row in history]
    canvas = _Canvas("Score for the preference, by epoch")
    with canvas as axes:
        colour, marker, line = FIRST
        rewards = [row.reward_mean for row in history]
        low = [row.reward_mean - row.reward_std for row in history]
        high = [row.reward_mean + row.reward_std for row in history]
        axes.fill_between(epochs, low, high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(epochs, rewards, marker=marker, linestyle=line, color=colour, label="judge (the reward)")
        held = [(row.epoch, row.held_out_mean) for row in history if row.held_out_mean is not None]
        if held:
            colour, marker, line = SECOND
            axes.plot(*zip(*held, strict=True), marker=marker, linestyle=line, color=colour, label="held-out judge")
        _epochs(axes)
        axes.legend(loc="best")
    return canvas.plot(f"The reward goes from {rewards[0]:.2f} to {rewards[-1]:.2f} over {len(history)} epochs.")


def reward_by_calls(history: Sequence[EpochRow]) -> Plot:
    """Mean reward and held-out score of each epoch over the number of answers that the user had given by its end."""
    calls = list(accumulate(row.asked for row in history))
    canvas = _Canvas("Score by the user’s answers so far")
    with canvas as axes:
        colour, marker, line = FIRST
        rewards = [row.reward_mean for row in history]
        axes.plot(calls, rewards, marker=marker, linestyle=line, color=colour, label="reward")
        held = [(n, row.held_out_mean) for n, row in zip(calls, history, strict=True) if row.held_out_mean is not None]
        if held:
            colour, marker, line = SECOND
            axes.plot(*zip(*held, strict=True), marker=marker, linestyle=line, color=colour, label="held-out judge")
        axes.set_xlim(left=0)
        axes.set_xlabel("images that the user was asked about")
        axes.legend(loc="best")
    return canvas.plot(f"The reward is {rewards[-1]:.2f} after {calls[-1]} answers of the user.")


def epoch_curve(history: Sequence[EpochRow], field: str, title: str) -> Plot:
    values = [getattr(row, field) for row in history]
    canvas = _Canvas(title, height=2.0)
    with canvas as axes:
        axes.plot([row.epoch for row in history], values, marker="o", color=INK)
        if min(values) >= 0:
            axes.set_ylim(bottom=0, top=max(values) * 1.15 or 1)
        _epochs(axes)
    return canvas.plot(f"{title}: from {values[0]:.3g} to {values[-1]:.3g}.")


def _epochs(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def accepted_by_round(loops: Mapping[str, Sequence[RoundSummary]]) -> Plot:
    """Share of captions whose image was accepted by each round."""
    canvas, last = _Canvas("Share of captions accepted by round", height=2.3), []
    with canvas as axes:
        for name, rounds in loops.items():
            captions, total, shares = rounds[0].drawn, 0, []
            for row in rounds:
                total += row.accepted
                shares.append(total / captions)
            arm, numbers = arms.by_name(name), [row.round for row in rounds]
            axes.plot(numbers, shares, marker=arm.marker, color=arm.colour, label=arm.label)
            last.append(f"{arm.label} {shares[0]:.0%} after the first, {shares[-1]:.0%} after all")
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="lower right")
    return canvas.plot(f"Share of captions accepted by round: {'; '.join(last)}.")
