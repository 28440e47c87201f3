"""Scores of an epoch's images: float64 tensors in which NaN, and nothing else, means that there is no score."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


class NotFinite(ValueError):
    """A reward gave an image a number that is not finite."""

    def __init__(self, index: int):
        super().__init__(f"the value of image {index} is not finite")
        self.index = index


def from_reward(given: Sequence[float | None]) -> torch.Tensor:
    """A reward's values [N], NaN where it gave None. Raises NotFinite for a number that is not finite."""
    for index, value in enumerate(given):
        if value is not None and not math.isfinite(value):
            raise NotFinite(index)
    return torch.tensor([math.nan if value is None else float(value) for value in given], dtype=torch.float64)


@dataclass(frozen=True)
class Scores:
    """Of an epoch's N images, in their order."""

    values: torch.Tensor  # [N]; NaN = asked about without a valid answer, or not asked about and nothing is known
    weights: torch.Tensor  # [N] of the values that there are: 1 = an answer, between 0 and 1 = the surrogate's
    asked: int  # images that the user was asked about
    masked: int  # of those, how many without a valid answer
    parts: dict[str, float] = field(default_factory=dict)  # reward -> mean raw value of the images asked about
    surrogate_error: float | None = None  # root mean square, on this epoch's answers before it learnt from them

    def valid(self) -> list[float]:
        """The scores that there are, in the images' order."""
        return self.values[~self.values.isnan()].tolist()
