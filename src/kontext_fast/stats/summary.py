"""Estimates of times, with the process as the unit of replication.

Calls inside one process share its compiled code, memory layout and clock state, so they are subsamples: they make the
value of that process, and only processes are counted. No value is ever deleted as an outlier.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval and how many units of replication it rests on."""

    value: float
    interval: tuple[float, float] | None
    """None where n is too small to give one."""
    n: int

    @property
    def excludes_one(self) -> bool:
        """True where a ratio differs from 1 beyond its interval; False also without an interval."""
        return self.interval is not None and not self.interval[0] <= 1 <= self.interval[1]


@dataclass(frozen=True)
class Summary:
    """Values of several processes, in the unit of the values."""

    mean: Estimate
    median: float
    values: tuple[float, ...]
    """One per process."""


def process_value(values: Mapping[str, Sequence[float]]) -> float:
    """The one value of a process: the mean over items of each item's mean, so that every item weighs the same.

    Raises ValueError where there is no item or an item without values.
    """
    if not values or not all(values.values()):
        raise ValueError("a process value needs at least one item, and at least one value of each")
    return float(np.mean([np.mean(of_item) for of_item in values.values()]))


def summarize(values: Sequence[float]) -> Summary:
    """Mean with its t-interval and median of one value per process. Raises ValueError for no values."""
    if not values:
        raise ValueError("there is nothing to summarize")
    return Summary(mean=mean_estimate(values), median=float(np.median(values)), values=tuple(values))


def mean_estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values and its two-sided t-interval, None below two values."""
    n = len(values)
    mean = float(np.mean(values))
    if n < 2:
        return Estimate(mean, None, n)
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Estimate(mean, (mean - half, mean + half), n)
