"""Percentiles, only where there are enough values to know them.

The rule is that of MLPerf's early stopping: with 99 % confidence, at most one of the n values would lie above a
percentile that really is the claimed one. It asks for 64 values for p90, 130 for p95 and 662 for p99.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

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
