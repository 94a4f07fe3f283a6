"""How near a solver comes to its target on items that the fit never saw, and what may be claimed of it.

Everything is a distance per item: |latents - target| / |target|. Comparisons are paired by item.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from kontext_fast.stats.bounds import mean_bounds
from kontext_fast.stats.intervals import Estimate, bootstrap_mean, mean_estimate
from kontext_fast.verify.converged import CONFIDENCE, ERROR_AT_MOST, Array, log_ratios


class Verdict(StrEnum):
    """Of one number of evaluations."""

    PASSES = "passes"
    FAILS = "fails"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class Distances:
    """Of one solver or scheme on the held-out items."""

    mean: Estimate
    median: float
    p90: float

    @classmethod
    def of(cls, values: Array) -> Distances:
        return cls(
            bootstrap_mean([float(value) for value in values]),
            float(np.median(values)),
            float(np.quantile(values, 0.9)),
        )


def ratio(values: Array, others: Array) -> Estimate:
    """The geometric mean over items of one distance divided by the other, with its interval; below 1 is nearer."""
    logs = mean_estimate([float(log) for log in log_ratios(values, others)])
    interval = None if logs.interval is None else (math.exp(logs.interval[0]), math.exp(logs.interval[1]))
    return Estimate(math.exp(logs.value), interval, logs.n)


def verdict(values: Array, plain: Array, error: Array | None) -> Verdict:
    """Whether a fitted solver is worth a preset: nearer to its target than plain steps of as many evaluations.

    `values` and `plain` [I] are their distances, `error` [I] the reference's own, None for a reference that is exact.
    """
    if error is not None and float(error.mean()) > ERROR_AT_MOST * min(float(values.mean()), float(plain.mean())):
        return Verdict.CANNOT_TELL
    bounds = mean_bounds(log_ratios(values, plain), CONFIDENCE, bounded=False)
    if float(bounds.upper) < 0 and float(values.mean()) < float(plain.mean()):
        return Verdict.PASSES
    return Verdict.FAILS if float(bounds.lower) > 0 or float(values.mean()) > float(plain.mean()) else (
        Verdict.CANNOT_TELL
    )  # fmt: skip


def as_data(distances: Mapping[str, Array]) -> dict[str, dict[str, object]]:
    """JSON-ready figures of each, by name."""
    return {name: _figures(Distances.of(values)) for name, values in distances.items()}


def _figures(distances: Distances) -> dict[str, object]:
    interval = distances.mean.interval
    return {
        "mean": distances.mean.value,
        "mean_interval": None if interval is None else list(interval),
        "median": distances.median,
        "p90": distances.p90,
    }
