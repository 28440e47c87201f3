"""95 % bootstrap intervals over captions, for one arm and for two arms that drew the same captions.

Values are dicts caption_id -> number, or None where nothing could be measured. A caption is resampled as a whole: both
arms keep or lose it together, which removes what makes captions easy or hard from their difference. Intervals are
percentiles (Efron & Tibshirani, "An introduction to the bootstrap", 1993, chapter 13).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = Mapping[int, float | None]
PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float
    n: int  # captions that count
    left_out: int  # captions with None on either side


def mean(values: Values, resamples: int, rng: np.random.Generator) -> Interval | None:
    """Mean over captions. None when every value is None."""
    return _interval([values], lambda means: means[0], resamples, rng)


def difference(arm: Values, baseline: Values, resamples: int, rng: np.random.Generator) -> Interval | None:
    """mean(arm) - mean(baseline) over the captions that have both. None when no caption has."""
    return _interval([arm, baseline], lambda means: means[0] - means[1], resamples, rng)


def ratio(arm: Values, baseline: Values, resamples: int, rng: np.random.Generator) -> Interval | None:
    """mean(arm) / mean(baseline) over the captions that have both.

    None when no caption has, or when the baseline's mean can be 0. For quantities that are never negative.
    """
    return _interval([arm, baseline], lambda means: means[0] / means[1], resamples, rng)


def _interval(
    columns: list[Values],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    resamples: int,
    rng: np.random.Generator,
) -> Interval | None:
    """`statistic` maps means [columns, ...] to [...]; it is applied to the means and to every resample's means."""
    captions = sorted(set().union(*columns))
    rows = [[column.get(caption) for column in columns] for caption in captions]
    complete = np.array([row for row in rows if None not in row], dtype=np.float64)  # [n, columns]
    n = len(complete)
    if n == 0:
        return None
    counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples)  # how often each resample has each caption
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(complete.mean(axis=0)))
        low, high = np.percentile(statistic((counts @ complete / n).T), PERCENTILES)
    if not np.isfinite([value, low, high]).all():
        return None
    return Interval(value, float(low), float(high), n, len(captions) - n)
