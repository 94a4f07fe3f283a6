"""Intervals of a mean over many items whose distribution is not known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kontext_fast.stats.proportion import MIN_ITEMS
from kontext_fast.stats.summary import CONFIDENCE, Estimate

_RESAMPLES = 9999


def bootstrap_mean(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of one value per item with its BCa bootstrap interval; the same `seed` gives the same interval.

    Below 30 items the interval is None: the bootstrap is then too narrow, and few values cannot say by how much.
    Raises ValueError for no values.
    """
    if not values:
        raise ValueError("there is nothing to resample")
    mean = float(np.mean(values))
    if len(values) < MIN_ITEMS:
        return Estimate(mean, None, len(values))
    if min(values) == max(values):
        return Estimate(mean, (mean, mean), len(values))
    from scipy import stats

    found = stats.bootstrap(
        (np.asarray(values, dtype=float),),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean, (float(found.low), float(found.high)), len(values))
