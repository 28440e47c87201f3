"""Does a model answer alike when it is asked the same again, and in other words?"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, cast

from t2i_feedback.mllm.base import Mllm

GROUP = 5  # questions asked together the second time
DIGITS = 6  # of a written number: what is beyond differs between machines

Numbers = dict[str, float | None]  # what a calibration writes; None = not to be had
Values = list[float | None]  # of the questions, in their order; None = the answer was not valid
Ask = Callable[[Mllm, Sequence[int], int], Values]  # model, which questions, sample index


class Reworded:
    """A Mllm asked in the words of another folder of templates, and the same in all else."""

    def __init__(self, mllm: Mllm, templates: str):
        self._mllm, self.templates = mllm, templates

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mllm, name)


@dataclass(frozen=True)
class Agreement:
    """First answers beside second ones to the same questions."""

    first: Values
    second: Values

    @property
    def pairs(self) -> list[tuple[float, float]]:
        both = zip(self.first, self.second, strict=True)
        return [(a, b) for a, b in both if a is not None and b is not None]

    @property
    def difference(self) -> float | None:
        """Mean distance of the two answers."""
        return fmean(abs(a - b) for a, b in self.pairs) if self.pairs else None

    @property
    def correlation(self) -> float | None:
        """Spearman's, over the questions; None where one side says the same to all."""
        from scipy.stats import spearmanr

        if any(len(set(side)) < 2 for side in zip(*self.pairs, strict=True)) or not self.pairs:
            return None
        return float(spearmanr(self.pairs).statistic)

    def agreeing(self, threshold: float) -> float | None:
        """Share of the questions where both answers lie on one side of the threshold."""
        return fmean((a >= threshold) == (b >= threshold) for a, b in self.pairs) if self.pairs else None

    @property
    def invalid(self) -> float | None:
        """Share of the second answers that are not valid."""
        return invalid(self.second)


def invalid(values: Sequence[float | None]) -> float | None:
    return fmean(value is None for value in values) if values else None


def rounded(numbers: Numbers) -> Numbers:
    return {name: None if value is None else round(value, DIGITS) for name, value in numbers.items()}


def retest(ask: Ask, mllm: Mllm, first: Values, rng: random.Random) -> Agreement:
    """The same questions once more, in another order and in groups of GROUP: other batches, another sample index.

    A checkpoint that decodes greedily says the same again if its answer depends on nothing but the question.
    """
    second: Values = [None] * len(first)
    order = rng.sample(range(len(first)), len(first))
    for start in range(0, len(order), GROUP):
        group = order[start : start + GROUP]
        for question, value in zip(group, ask(mllm, group, 1), strict=True):
            second[question] = value
    return Agreement(first, second)


def paraphrases(ask: Ask, mllm: Mllm, first: Values, folders: Sequence[str]) -> list[Agreement]:
    """The same questions in the words of each folder of templates (`wording.paraphrases` finds them)."""
    others = [cast(Mllm, Reworded(mllm, folder)) for folder in folders]
    return [Agreement(first, ask(other, range(len(first)), 0)) for other in others]


def together(agreements: Sequence[Agreement]) -> Agreement:
    """All of them as one."""
    return Agreement([v for a in agreements for v in a.first], [v for a in agreements for v in a.second])
