"""How far outputs are from the converged reference, where the model's own differential equation leads, and what may be
claimed of that.

It needs no judge, so it can be said of any weights: that a preset's solver and arithmetic come as near to the model's
own answer as the steps that everybody runs. It does not say that this answer is good. Everything is a distance of final
latents per item, |latents - reference| / |reference|, and comparisons are paired by item.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from kontext_fast.stats.bounds import mean_bounds

Array = npt.NDArray[np.float64]

CONFIDENCE = 0.95
MEAN_AT_MOST = 1.1
"""Of baseline's mean distance, so that a few items far off cannot hide behind a typical one that is near."""
ERROR_AT_MOST = 1 / 3
"""The reference's own error, of the smallest distance that is claimed."""


class Closeness(StrEnum):
    """Of a preset to the converged reference, against baseline's own."""

    NO_FARTHER = "no farther"
    FARTHER = "farther"
    CANNOT_TELL = "cannot tell"


def relative_distances(latents: npt.NDArray[np.float32], target: npt.NDArray[np.float32]) -> Array:
    """[I] of latents [I, ...]."""
    difference = (latents - target).reshape(len(latents), -1).astype(np.float64)
    norms = np.linalg.norm(target.reshape(len(target), -1).astype(np.float64), axis=1)
    distances: Array = np.linalg.norm(difference, axis=1) / norms
    return distances


def log_ratios(values: Array, others: Array) -> Array:
    """[I] of two distances per item."""
    # An item that two runs solve exactly has no ratio; no distance in float32 is below this.
    return np.asarray(np.log(np.maximum(values, 1e-9)) - np.log(np.maximum(others, 1e-9)))


def closeness(
    values: Array,
    baseline: Array,
    error: Array,
    *,
    ratio_at_most: float = MEAN_AT_MOST,
    confidence: float = CONFIDENCE,
) -> Closeness:
    """The rule, fixed before anything is measured: distances `values` [I] against `baseline` [I], by one-sided bounds.

    No farther: the geometric mean of the items' ratios is below `ratio_at_most`, and the mean distance at most a tenth
    above baseline's own. Farther: one of the two is surely not so. `error` [I] is the
    reference's own, which has to be below a third of both mean distances.
    """
    if len(values) < 2 or float(error.mean()) > ERROR_AT_MOST * min(float(values.mean()), float(baseline.mean())):
        return Closeness.CANNOT_TELL
    ratio = mean_bounds(log_ratios(values, baseline) - np.log(ratio_at_most), confidence, bounded=False)
    mean = mean_bounds(values - MEAN_AT_MOST * baseline, confidence, bounded=False)
    if float(ratio.upper) < 0 and float(mean.upper) <= 0:
        return Closeness.NO_FARTHER
    return Closeness.FARTHER if float(ratio.lower) > 0 or float(mean.lower) > 0 else Closeness.CANNOT_TELL


DISTANCE, DISTANCE_IN_FLOAT32, REFERENCE_ERROR = "converged", "converged in float32", "converged reference error"
"""Names of scores: of every output that is compared, and the two others of baseline."""


@dataclass(frozen=True)
class ConvergedComparison:
    """One preset's distances to the reference beside baseline's own."""

    closeness: Closeness
    ratio: tuple[float, float, float]
    """Geometric mean of the items' ratios to baseline as diffusers runs it, with one-sided bounds."""
    mean: float
    baseline_mean: float
    float32_mean: float
    """Of baseline's steps with latents in float32: what precision alone, and no solver, is worth."""
    error: float
    items: int

    @property
    def sentence(self) -> str:
        value, low, high = self.ratio
        return (
            f"It is {value:.2f} times as far from the model's own converged answer as baseline "
            f"({low:.2f} to {high:.2f}; mean {self.mean:.4f}, baseline {self.baseline_mean:.4f}, with latents in "
            f"float32 {self.float32_mean:.4f}; the answer's own error {self.error:.4f}; {self.items} items): "
            f"{self.closeness.value}."
        )


def compare_with_converged(
    preset: Mapping[Any, float],
    baseline: Mapping[Any, float],
    in_float32: Mapping[Any, float],
    error: Mapping[Any, float],
) -> ConvergedComparison | None:
    """Of distances by item and seed; None where fewer than two items have all of them."""
    keys = sorted(preset.keys() & baseline.keys() & in_float32.keys() & error.keys())
    if len(keys) < 2:
        return None
    values, own, exact, errors = (
        np.array([of[key] for key in keys], np.float64) for of in (preset, baseline, in_float32, error)
    )
    bounds = mean_bounds(log_ratios(values, own), CONFIDENCE, bounded=False)
    ratio = tuple(math.exp(float(bound)) for bound in (bounds.mean, bounds.lower, bounds.upper))
    return ConvergedComparison(
        closeness(values, own, errors),
        (ratio[0], ratio[1], ratio[2]),
        float(values.mean()),
        float(own.mean()),
        float(exact.mean()),
        float(errors.mean()),
        len(keys),
    )
