"""One-sided bounds with the item as the unit of replication, and the tests that use them.

Arrays of differences have the items on their last axis and anything before it, so that a thousand simulated
verifications are one call. Seeds of an item are averaged before they come here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri, stdtr, stdtrit
from scipy.stats import binom

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MeanBounds:
    """Mean of differences and its one-sided lower and upper bound; arrays without the axis of the items."""

    mean: Array
    lower: Array
    upper: Array
    p_loss: Array
    """The probability of a mean this low if there were no loss."""


def mean_bounds(differences: npt.ArrayLike, confidence: float, *, bounded: bool) -> MeanBounds:
    """Bounds of the mean difference; `bounded` says that scores are yes or no, so that differences are in -1..1.

    Unbounded differences get t-bounds. Bounded ones get Bonett and Price's adjustment, which adds one item for and one
    against: without it a dozen items that all agree would claim certainty. Raises ValueError below two items.
    """
    values = np.asarray(differences, np.float64)
    if values.shape[-1] < 2:
        raise ValueError("a bound needs at least two items")
    mean = values.mean(-1)
    if bounded:
        added = np.broadcast_to(np.array([1.0, -1.0]), (*values.shape[:-1], 2))
        values = np.concatenate([values, added], axis=-1)
    n = values.shape[-1]
    center = values.mean(-1)
    error = values.std(-1, ddof=0 if bounded else 1) / np.sqrt(n)
    reach = float(ndtri(confidence)) if bounded else float(stdtrit(n - 1, confidence))
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(error > 0, center / error, np.sign(center) * np.inf)
    statistic = np.nan_to_num(statistic, nan=0.0, posinf=np.inf, neginf=-np.inf)
    p_loss = ndtr(statistic) if bounded else stdtr(n - 1, statistic)
    return MeanBounds(mean, center - reach * error, center + reach * error, np.asarray(p_loss, np.float64))


def items_needed(deviation: float, margin: float, *, confidence: float, power: float, bounded: bool = False) -> int:
    """Items with which a preset without any loss passes its margin with probability `power`.

    `deviation` is the standard deviation of the differences of items, in the unit of `margin`. `bounded` counts the
    two items that `mean_bounds` adds, which matter where hardly any item differs.
    """
    reach = (ndtri(confidence) + ndtri(power)) / margin
    needed = max(2, int(np.ceil((reach * deviation) ** 2)))
    if not bounded:
        return needed
    # (needed + 2)^2 = reach^2 * (needed * deviation^2 + 2), solved for needed.
    half = (reach * deviation) ** 2 / 2
    return max(2, int(np.ceil(half - 2 + np.sqrt(half**2 - 4 * half + 2 * reach**2))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the given order: each may be compared with the nominal level."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def quantile_bounds(values: npt.ArrayLike, quantile: float, confidence: float) -> tuple[float, float, float]:
    """The sample quantile and its one-sided lower and upper bound by order statistics, which assume no distribution.

    A bound is infinite where there are too few values for one.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    n = len(ordered)
    lower_rank, upper_rank = _bound_ranks(n, quantile, confidence)
    upper = float(ordered[upper_rank]) if upper_rank < n else float("inf")
    lower = float(ordered[lower_rank]) if lower_rank >= 0 else float("-inf")
    return float(np.quantile(ordered, quantile, method="inverted_cdf")), lower, upper


def items_for_quantile(beyond: float, quantile: float, *, confidence: float, power: float, most: int) -> int | None:
    """Items with which the upper bound of a quantile is within a limit, with probability `power`, where the share
    `beyond` of all items is beyond that limit; None where that takes more than `most`."""
    n = np.arange(1, most + 1)
    # Item `rank` (0-based) is the bound; so many of the others may be beyond the limit.
    rank = binom.ppf(confidence, n, quantile)
    enough = (rank < n) & (binom.cdf(n - 1 - rank, n, beyond) >= power)
    return int(n[enough][0]) if enough.any() else None


@cache
def _bound_ranks(n: int, quantile: float, confidence: float) -> tuple[int, int]:
    """Which of `n` ordered values (0-based) are the bounds of a quantile."""
    # The quantile lies below value k with probability P(Binomial(n, quantile) <= k).
    return int(binom.ppf(1 - confidence, n, quantile)) - 1, int(binom.ppf(confidence, n, quantile))


@dataclass(frozen=True)
class Ratio:
    """A ratio of distances of the same items, with one-sided bounds."""

    value: float
    lower: float
    upper: float


_LARGEST_RATIO = 1000.0
"""Of one item; its inverse is the smallest. A distance of 0 has no logarithm."""


def ratio_bounds(numerator: Sequence[npt.ArrayLike], denominator: Sequence[npt.ArrayLike], confidence: float) -> Ratio:
    """Of two distances of every item, all at least 0: the geometric mean of the items' ratios with t-bounds of its
    logarithm.

    Distances spread over orders of magnitude, and a ratio of their means rests on the few largest ones, so that neither
    a bootstrap nor Fieller's bounds tell anything with a dozen items. Each item compared with itself has no such tail.
    An item may have the distances of several outputs, in the same order in both; its ratio is the geometric mean of
    theirs, see `_log_ratio`. A single item gives no bounds but 0 and infinity.
    """
    above, below = ([np.atleast_1d(np.asarray(of, np.float64)) for of in side] for side in (numerator, denominator))
    if not any(of.any() for of in above):
        # Nothing is apart, whatever it is compared with.
        return Ratio(0.0, 0.0, 0.0)
    if not any(of.any() for of in below):
        return Ratio(math.inf, math.inf, math.inf)
    logs = np.array([_log_ratio(*of_item) for of_item in zip(above, below, strict=True)])
    value, n = float(logs.mean()), len(logs)
    if n < 2:
        return Ratio(math.exp(value), 0.0, math.inf)
    half = float(stdtrit(n - 1, confidence)) * float(logs.std(ddof=1)) / math.sqrt(n)
    return Ratio(math.exp(value), math.exp(value - half), math.exp(value + half))


def _log_ratio(above: Array, below: Array) -> float:
    """The logarithm of the ratio of one item, output by output where each of them is apart.

    How far a change takes an output depends on its seed as much as on its item, and does so in both distances: the
    ratios of outputs spread half as much as those of the items' means. An output without any distance has no ratio;
    the means of such an item are compared.
    """
    if len(above) != len(below) or not (above.all() and below.all()):
        above, below = above.mean(keepdims=True), below.mean(keepdims=True)
    ratios = np.where((above == 0) & (below == 0), 1.0, divided(above, below))
    return float(np.log(np.clip(ratios, 1 / _LARGEST_RATIO, _LARGEST_RATIO)).mean())


def divided(above: npt.ArrayLike, below: npt.ArrayLike) -> Array:
    """0 / 0 is 0: two things without any distance are alike."""
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(above == 0, 0.0, above / below)
