"""Properties of a series of values: drift over time, outliers, and percentiles where enough values exist."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from kontext_fast.stats.intervals import CONFIDENCE

MIN_VALUES = 5
"""Fewer values have no order that is rare enough to be significant."""


@dataclass(frozen=True)
class Drift:
    """The Mann-Kendall test of one series, in the order of time."""

    p_value: float
    change: float
    """From the first to the last value along the line of Theil and Sen, as a fraction of the median."""
    n: int

    @property
    def significant(self) -> bool:
        return self.p_value < 1 - CONFIDENCE


def drift(values: Sequence[float]) -> Drift | None:
    """The drift of positive values in the order of time; None below `MIN_VALUES`."""
    if len(values) < MIN_VALUES:
        return None
    from scipy import stats

    order = range(len(values))
    # Kendall's tau against time is the Mann-Kendall test, exact for short series without ties.
    p_value = float(stats.kendalltau(order, values).pvalue)
    rise = float(stats.theilslopes(values, order).slope) * order[-1]
    # Where all values are the same the test has no answer.
    return Drift(1.0 if math.isnan(p_value) else p_value, rise / float(np.median(values)), len(values))


_FENCE = 1.5
_LEAST = 4
"""Fewer values have no meaningful quartiles."""


def outliers(values: Sequence[float]) -> tuple[int, ...]:
    """Positions of the values beyond Tukey's fences: 1.5 interquartile ranges outside the quartiles."""
    if len(values) < _LEAST:
        return ()
    low, high = np.percentile(values, [25, 75])
    reach = _FENCE * (high - low)
    return tuple(index for index, value in enumerate(values) if not low - reach <= value <= high + reach)


_CHANCE = 0.01
_ALLOWED_ABOVE = 1


@cache
def values_needed(percent: float) -> int:
    """How many values the percentile `percent`, above 0 and below 100, needs."""
    from scipy.special import bdtr

    if not 0 < percent < 100:
        raise ValueError(f"{percent} is not a percentile between 0 and 100")
    above = 1 - percent / 100
    n = _ALLOWED_ABOVE + 1
    while bdtr(_ALLOWED_ABOVE, n, above) > _CHANCE:
        n += 1
    return n


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The value that `percent` of `values` do not exceed; None where they are too few to know it."""
    if len(values) < values_needed(percent):
        return None
    return float(np.percentile(values, percent, method="higher"))
