"""How well probabilities tell what is true from what is false. `true` and `false` are P(yes) of either kind.

Both kinds weigh alike, whatever their numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Of the answers whose P(yes) lies between the edges: their mean P(yes) and the weighed share that is true."""

    low: float
    high: float
    stated: float
    observed: float
    weight: float  # of 1
    count: int


def auc(true: Sequence[float], false: Sequence[float]) -> float:
    """P(a true one ranks above a false one), ties counting half: the area under the ROC curve."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score([1] * len(true) + [0] * len(false), [*true, *false]))


def balanced_accuracy(true: Sequence[float], false: Sequence[float], threshold: float) -> float:
    """Mean of the share of true ones at or above the threshold and of false ones below it."""
    return float((np.mean(np.asarray(true) >= threshold) + np.mean(np.asarray(false) < threshold)) / 2)


def best_threshold(true: Sequence[float], false: Sequence[float]) -> float:
    """The threshold with the best balanced accuracy: midway between two P(yes); of several the nearest to 0.5."""
    values = np.unique([*true, *false])
    between = [0.5, *((values[1:] + values[:-1]) / 2)]
    return float(max(between, key=lambda t: (round(balanced_accuracy(true, false, t), 12), -abs(t - 0.5))))


def reliability(true: Sequence[float], false: Sequence[float]) -> list[Bin]:
    """The reliability diagram: bins of equal width that hold an answer."""
    p = np.array([*true, *false])
    is_true = np.arange(len(p)) < len(true)
    weights = np.where(is_true, 0.5 / len(true), 0.5 / len(false))
    numbers = np.minimum((p * BINS).astype(int), BINS - 1)
    found = []
    for number in np.unique(numbers):
        inside = numbers == number
        weight = weights[inside].sum()
        stated, observed = (weights[inside] * values[inside] / weight for values in (p, is_true))
        edges = number / BINS, (number + 1) / BINS
        found.append(Bin(*edges, float(stated.sum()), float(observed.sum()), float(weight), int(inside.sum())))
    return found


def calibration_error(true: Sequence[float], false: Sequence[float]) -> float:
    """Mean distance of stated and observed over the bins (the expected calibration error)."""
    return sum(b.weight * abs(b.stated - b.observed) for b in reliability(true, false))
