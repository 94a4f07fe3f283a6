"""How far outputs are from the converged reference, where the model's own differential equation leads, and what may be
claimed of that.

It needs no judge, so it can be said of any weights: that a preset's solver and arithmetic come as near to the model's
own answer as the steps that everybody runs. It does not say that this answer is good. Everything is a distance of final
latents per item, |latents - reference| / |reference|, and comparisons are paired by item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kontext_fast.stats.bounds import mean_bounds

if TYPE_CHECKING:
    from kontext_fast.datasets.base import Item
    from kontext_fast.verify.paths import PathRunner

Array = npt.NDArray[np.float64]

CONFIDENCE = 0.95
MEAN_AT_MOST = 1.1
"""Of baseline's mean distance, so that a few items far off cannot hide behind a typical one that is near."""
ERROR_AT_MOST = 1 / 3
"""The reference's own error, of the smallest distance that is claimed."""
REFERENCE_STEPS = 224
"""Of the finest of the three paths behind a reference; the others have half and a quarter as many."""


class Closeness(StrEnum):
    """Of a preset to the converged reference, against baseline's own."""

    NO_FARTHER = "no farther"
    FARTHER = "farther"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class Reference:
    """Where the paths of some items converge."""

    target: npt.NDArray[np.float32]
    """[I, N, C] final latents."""
    error: Array
    """[I] an estimate of its own relative distance to the limit."""


def reference_evaluations(steps: int = REFERENCE_STEPS) -> int:
    """Of one item."""
    return steps + steps // 2 + steps // 4


def converged_reference(
    runner: PathRunner, items: Sequence[Item], seeds: Sequence[int], steps: int = REFERENCE_STEPS
) -> Reference:
    """Richardson's extrapolation of paths of `steps` (a multiple of 4) and half as many, with latents in float32.

    Euler's error is proportional to the step to first order, which the extrapolation removes. What is left falls by
    four when the steps are halved, so a third of what the next coarser pair gives otherwise estimates it.
    """
    finest, half, quarter = (runner.euler(items, seeds, steps // part).float().cpu().numpy() for part in (1, 2, 4))
    target, coarser = 2 * finest - half, 2 * half - quarter
    return Reference(target, relative_distances(coarser, target) / 3)


def relative_distances(latents: npt.NDArray[np.float32], target: npt.NDArray[np.float32]) -> Array:
    """[I] of latents [I, ...]."""
    difference = (latents - target).reshape(len(latents), -1).astype(np.float64)
    norms = np.linalg.norm(target.reshape(len(target), -1).astype(np.float64), axis=1)
    return np.asarray(np.linalg.norm(difference, axis=1) / norms, np.float64)


def log_ratios(values: Array, others: Array) -> Array:
    """[I] of two distances per item."""
    # An item that two runs solve exactly has no ratio; no distance in float32 is below this.
    return np.asarray(np.log(np.maximum(values, 1e-9)) - np.log(np.maximum(others, 1e-9)))


def closeness(values: Array, baseline: Array, error: Array, *, ratio_at_most: float = MEAN_AT_MOST) -> Closeness:
    """The rule, fixed before anything is measured: distances `values` [I] against `baseline` [I], by one-sided bounds.

    No farther: the geometric mean of the items' ratios is below `ratio_at_most`, and the mean distance at most a tenth
    above baseline's own. Farther: one of the two is surely not so. `error` [I] is the reference's own, which has to be
    below a third of both mean distances.
    """
    if len(values) < 2 or float(error.mean()) > ERROR_AT_MOST * min(float(values.mean()), float(baseline.mean())):
        return Closeness.CANNOT_TELL
    ratio = mean_bounds(log_ratios(values, baseline) - np.log(ratio_at_most), CONFIDENCE, bounded=False)
    mean = mean_bounds(values - MEAN_AT_MOST * baseline, CONFIDENCE, bounded=False)
    if float(ratio.upper) < 0 and float(mean.upper) <= 0:
        return Closeness.NO_FARTHER
    return Closeness.FARTHER if float(ratio.lower) > 0 or float(mean.lower) > 0 else Closeness.CANNOT_TELL
