"""How near a solver comes to its target on items that the fit never saw, and what may be claimed of it.

Everything is a distance per item: |latents - target| / |target|. Comparisons are paired by item.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from kontext_fast.stats.bounds import mean_bounds
from kontext_fast.stats.intervals import Estimate, bootstrap_mean, mean_estimate

Array = npt.NDArray[np.float64]

CONFIDENCE = 0.95
MEAN_AT_MOST = 1.1
"""Of baseline's mean distance: what `as_accurate` allows, so that a few items far off cannot hide in the median."""
ERROR_AT_MOST = 1 / 3
"""The reference's own error, of the smallest distance that is claimed."""


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
    logs = mean_estimate([float(log) for log in _logs(values, others)])
    interval = None if logs.interval is None else (math.exp(logs.interval[0]), math.exp(logs.interval[1]))
    return Estimate(math.exp(logs.value), interval, logs.n)


def no_farther(values: Array, baseline: Array) -> bool:
    """The rule of `as_accurate`, fixed before anything is measured.

    The one-sided 95 % bound of the paired geometric mean ratio lies below 1, and the mean distance is at most a tenth
    above baseline's own.
    """
    upper = float(mean_bounds(_logs(values, baseline), CONFIDENCE, bounded=False).upper)
    return upper < 0 and float(values.mean()) <= MEAN_AT_MOST * float(baseline.mean())


def verdict(values: Array, plain: Array, error: Array | None) -> Verdict:
    """Whether a fitted solver is worth a preset: nearer to its target than plain steps of as many evaluations.

    `values` and `plain` [I] are their distances, `error` [I] the reference's own, None for a reference that is exact.
    """
    if error is not None and float(error.mean()) > ERROR_AT_MOST * min(float(values.mean()), float(plain.mean())):
        return Verdict.CANNOT_TELL
    bounds = mean_bounds(_logs(values, plain), CONFIDENCE, bounded=False)
    if float(bounds.upper) < 0 and float(values.mean()) < float(plain.mean()):
        return Verdict.PASSES
    return Verdict.FAILS if float(bounds.lower) > 0 or float(values.mean()) > float(plain.mean()) else (
        Verdict.CANNOT_TELL
    )  # fmt: skip


def relative_distances(latents: npt.NDArray[np.float32], target: npt.NDArray[np.float32]) -> Array:
    """[I] of latents [I, N, C]."""
    difference = (latents - target).reshape(len(latents), -1).astype(np.float64)
    norms = np.linalg.norm(target.reshape(len(target), -1).astype(np.float64), axis=1)
    return np.asarray(np.linalg.norm(difference, axis=1) / norms, np.float64)


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


def _logs(values: Array, others: Array) -> Array:
    # An item that two runs solve exactly has no ratio; no distance in float32 is below this.
    return np.asarray(np.log(np.maximum(values, 1e-9)) - np.log(np.maximum(others, 1e-9)))
