"""Whether values move in one direction over time, as they do while a card warms up or a disk fills."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kontext_fast.stats.summary import CONFIDENCE

MIN_VALUES = 5
"""Of fewer values no order is rare enough to be told from chance."""


@dataclass(frozen=True)
class Drift:
    """The Mann-Kendall test of one series, in the order of time."""

    p_value: float
    change: float
    """From the first to the last value along the line of Theil and Sen, as a fraction of the median."""
    n: int

    @property
    def found(self) -> bool:
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
