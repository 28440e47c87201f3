"""Our number against the paper's, and whether our rows may stand in one column at all."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from t2i_feedback.tools.paper.rows import Figure

Z = 1.96  # standard errors to either side of a 95 % interval of a normal distribution
FORMULA = (
    "Difference = ours − paper; its 95 % interval is ± 1.96 √(e² + p²). e is our standard error: for FID the standard "
    "deviation over bootstrap resamples, for IS the ± over splits as it stands, for means over images or captions "
    "their standard deviation / √n. p is the paper's ± taken as the same, for Iteration its ± / √n with our n (it "
    "states none), and 0 where it prints no ±."
)
# What a card says of who was asked and how: rows differ in it on purpose, and neither FID nor IS depends on it.
OF_ROLES = ("_reading", "_asked")  # endings of what the card says of each role: how it was read, how it was asked
ASKING = ("judge", "held_out_judge", "validator", "templates", "preference")


@dataclass(frozen=True)
class Difference:
    value: float
    half: float  # of the 95 % interval

    @property
    def low(self) -> float:
        return self.value - self.half

    @property
    def high(self) -> float:
        return self.value + self.half


def difference(ours: Figure, paper: Figure) -> Difference | None:
    """None where our own error is unknown, or where both numbers are so by definition (one round without a loop)."""
    if ours.error is None:
        return None
    return Difference(ours.value - paper.value, Z * math.hypot(ours.error, paper.error or 0.0))


def measured(metrics: Mapping[str, float], images: Sequence[Mapping[str, float]], loop: bool) -> dict[str, Figure]:
    """Column key -> our figure, from an arm's metrics and its measurements image by image. CLIP gives no IS."""
    n = len(images)
    found = {
        key: Figure(metrics[key], metrics[f"{key}_std"], metrics[f"{key}_std"])
        for key in ("fid", "is")
        if key in metrics
    }
    found["rounds_mean"] = Figure(1)
    if loop:
        spread = metrics["rounds_std"]
        found["rounds_mean"] = Figure(metrics["rounds_mean"], spread, spread / math.sqrt(n))
    for key in ("contrast", "brightness"):
        values = [image[key] for image in images]
        found[key] = Figure(statistics.fmean(values), None, statistics.stdev(values) / math.sqrt(n))
    return found


def with_error(paper: Figure, key: str, n: int) -> Figure:
    """The paper's figure with the standard error that we read into its ±: of Iteration, it is over captions."""
    if key != "rounds_mean" or paper.spread is None:
        return paper
    return Figure(paper.value, paper.spread, paper.spread / math.sqrt(n))


def protocol(card: Mapping[str, object]) -> dict[str, object]:
    """Of a protocol card, what its FID, IS and light depend on."""
    return {key: value for key, value in card.items() if key not in ASKING and not key.endswith(OF_ROLES)}


def deviations(card: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    """ "steps 4, not 50" for each point in which the first was measured by another protocol; [] if they compare."""
    ours, theirs = protocol(card), protocol(other)
    keys = [key for key in {**theirs, **ours} if ours.get(key) != theirs.get(key)]
    return [f"{key.replace('_', ' ')} {ours.get(key)}, not {theirs.get(key)}" for key in keys]
