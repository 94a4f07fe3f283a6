"""Values that lie far from the rest: pointed out to the reader, never deleted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_FENCE = 1.5
_LEAST = 4
"""Fewer values have no quartiles worth the name."""


def outliers(values: Sequence[float]) -> tuple[int, ...]:
    """Positions of the values beyond Tukey's fences: 1.5 interquartile ranges outside the quartiles."""
    if len(values) < _LEAST:
        return ()
    low, high = np.percentile(values, [25, 75])
    reach = _FENCE * (high - low)
    return tuple(index for index, value in enumerate(values) if not low - reach <= value <= high + reach)
