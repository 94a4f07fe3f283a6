"""Statistical comparisons of a preset with baseline, one metric at a time.

Distances are compared with the rounding floor and with seed noise, and differences of scores with the margins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from kontext_fast.stats.bounds import (
    Array,
    Ratio,
    divided,
    holm,
    items_for_quantile,
    items_needed,
    mean_bounds,
    quantile_bounds,
    ratio_bounds,
)
from kontext_fast.verify.margins import FloorMargins, Margins

_MOST = 1000
"""Items; what would take more is beyond any verification."""


class Outcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "undecided"
    INSENSITIVE = "insensitive"
    """Rounding alone would fail, so that nothing follows from the comparison."""


ByItem = Mapping[str, Sequence[float]]
"""Values of the seeds of each item."""


@dataclass(frozen=True)
class FidelityDistances:
    """Distances of one fidelity metric, at least 0, by item."""

    metric: str
    to_baseline: ByItem
    floors: Mapping[str, ByItem]
    """By arm: of baseline to itself, which differs by rounding at most."""
    between_seeds: ByItem = field(default_factory=dict)
    """Of baseline."""
    reordered: ByItem = field(default_factory=dict)
    """Of the preset to itself, with its requests in another order."""


@dataclass(frozen=True)
class QualityDifferences:
    """Differences of the scores of one quality metric, preset minus baseline, by item; below 0 is worse."""

    metric: str
    differences: ByItem
    bounded: bool
    """True where scores are yes or no."""


@dataclass(frozen=True)
class FloorComparison:
    """The preset's distance over that of the largest arm of the floor, item by item, on the items of both."""

    metric: str
    outcome: Outcome
    ratio: Ratio
    """The geometric mean of the items' ratios, and in each item of those of its outputs."""
    median_ratio: Ratio
    """Of the median item."""
    worst: float
    """The preset's largest distance over the arm's, of all items that each has."""
    arm: str
    n: int
    """Items of both."""


@dataclass(frozen=True)
class SeedNoiseComparison:
    """The preset's distance over that of two seeds of baseline, item by item: median and 90th percentile."""

    metric: str
    outcome: Outcome
    median: float
    median_upper: float
    p90: float
    p90_upper: float
    n: int = 0
    """Items compared."""


@dataclass(frozen=True)
class MarginComparison:
    """The mean difference of a primary metric with one-sided bounds."""

    metric: str
    outcome: Outcome
    mean: float
    lower: float
    upper: float
    margin: float
    n: int
    needed: int
    """Items with which a preset without any loss would pass."""


def compare_with_floor(fidelity: FidelityDistances, distances: ByItem, margins: Margins) -> FloorComparison | None:
    """`distances` and those of the arm of the floor that is farthest from baseline; None where they share no item.

    They are compared item by item, and output by output: some edits amplify any rounding, and do so in every arm.
    """
    arm = _largest_floor(fidelity)
    if arm is None:
        return None
    shared = _shared_items(distances, fidelity.floors[arm])
    if not shared:
        return None
    ratio = ratio_bounds(
        [distances[item] for item in shared], [fidelity.floors[arm][item] for item in shared], margins.confidence
    )
    above, below = _shared_means(distances, fidelity.floors[arm])
    worst = float(divided(item_means(distances).max(), item_means(fidelity.floors[arm]).max()))
    median_ratio = Ratio(*quantile_bounds(divided(above, below), 0.5, margins.confidence))
    outcome = _floor_outcome(ratio, median_ratio, worst, len(above), margins.floor)
    return FloorComparison(fidelity.metric, outcome, ratio, median_ratio, worst, arm, len(above))


def far_where_changed(fidelity: FidelityDistances, distances: ByItem, margins: Margins) -> FloorComparison | None:
    """`distances` of the items that differ at all, where the middle one of them is far beyond the floor; else None.

    Where rounding changes items, most are as far as rounding takes them, and it may turn over one of many. What leaves
    most items as they are, and takes the others far, is not rounding, however few they are.
    """
    changed = compare_with_floor(fidelity, {item: values for item, values in distances.items() if any(values)}, margins)
    if changed is None or min(changed.median_ratio.value, changed.worst) <= margins.floor.worst:
        return None
    return changed


def _largest_floor(fidelity: FidelityDistances) -> str | None:
    """The arm of the floor whose mean distance is the largest; None where no arm has any."""
    means = {arm: values.mean() for arm, by_item in fidelity.floors.items() if len(values := item_means(by_item)) > 0}
    return max(means, key=lambda arm: float(means[arm]), default=None)


def _floor_outcome(ratio: Ratio, median_ratio: Ratio, worst: float, n: int, margins: FloorMargins) -> Outcome:
    if max(ratio.lower, median_ratio.lower) > margins.ratio or worst > margins.worst:
        return Outcome.FAILED
    within = max(ratio.upper, median_ratio.upper) <= margins.ratio
    return Outcome.PASSED if within and n >= margins.min_items else Outcome.UNDECIDED


def _shared_items(first: ByItem, second: ByItem) -> list[str]:
    return sorted(item for item in first.keys() & second.keys() if first[item] and second[item])


def _shared_means(first: ByItem, second: ByItem) -> tuple[Array, Array]:
    """Means over the seeds of every item that has values in both."""
    shared = _shared_items(first, second)
    return item_means({item: first[item] for item in shared}), item_means({item: second[item] for item in shared})


def item_means(by_item: ByItem) -> Array:
    """One value per item, in the order of the ids."""
    return np.array([sum(values) / len(values) for _, values in sorted(by_item.items()) if values], np.float64)


def compare_with_margins(quality: Sequence[QualityDifferences], margins: Margins) -> tuple[MarginComparison, ...]:
    """Non-inferiority of each metric by itself, since all have to pass; a loss is claimed with Holm's correction."""
    means = [item_means(metric.differences) for metric in quality]
    bounds = [
        mean_bounds(values, margins.confidence, bounded=metric.bounded)
        for metric, values in zip(quality, means, strict=True)
    ]
    adjusted = holm([float(bound.p_loss) for bound in bounds])
    comparisons = []
    for metric, values, bound, p_value in zip(quality, means, bounds, adjusted, strict=True):
        margin = margins.primary[metric.metric]
        if len(values) >= margins.min_items and float(bound.lower) > -margin:
            outcome = Outcome.PASSED
        else:
            outcome = Outcome.FAILED if p_value < 1 - margins.confidence else Outcome.UNDECIDED
        needed = items_needed(
            float(values.std(ddof=1)),
            margin,
            confidence=margins.confidence,
            power=margins.power,
            bounded=metric.bounded,
        )
        comparisons.append(
            MarginComparison(
                metric=metric.metric,
                outcome=outcome,
                mean=float(bound.mean),
                lower=float(bound.lower),
                upper=float(bound.upper),
                margin=margin,
                n=len(values),
                needed=max(needed, margins.min_items),
            )
        )
    return tuple(comparisons)


def compare_with_seed_noise(
    fidelity: FidelityDistances, margins: Margins, *, ways: int = 1
) -> SeedNoiseComparison | None:
    """The distances to baseline and those of two seeds of baseline; None where the margins do not ask for the metric.

    They are compared item by item: an edit with one answer has hardly any seed noise, and an open one has much.
    Insensitive where rounding alone, the largest arm of the floor, is not known to stay below the limits. A loss is
    claimed at a level that holds for both quantiles of all metrics in so many `ways` of use together; without that,
    one in five presets at the limits would be called a loss by chance.
    """
    ratios = seed_noise_ratios(fidelity)
    if fidelity.metric not in margins.seed_noise.metrics or len(ratios) == 0:
        return None
    limits = {0.5: margins.seed_noise.median, 0.9: margins.seed_noise.p90}
    strict = margins.stricter(ways * len(limits) * len(margins.seed_noise.metrics)).confidence
    bounds = {quantile: quantile_bounds(ratios, quantile, margins.confidence) for quantile in limits}
    beyond = any(quantile_bounds(ratios, quantile, strict)[1] > limit for quantile, limit in limits.items())
    arm = _largest_floor(fidelity)
    rounding = _ratios({} if arm is None else fidelity.floors[arm], fidelity.between_seeds)
    if len(rounding) and not _is_below_limits(rounding, margins):
        outcome = Outcome.INSENSITIVE
    elif beyond:
        outcome = Outcome.FAILED
    elif all(bounds[quantile][2] < limit for quantile, limit in limits.items()):
        outcome = Outcome.PASSED
    else:
        outcome = Outcome.UNDECIDED
    (median, _, median_upper), (p90, _, p90_upper) = bounds[0.5], bounds[0.9]
    return SeedNoiseComparison(fidelity.metric, outcome, median, median_upper, p90, p90_upper, n=len(ratios))


def seed_noise_ratios(fidelity: FidelityDistances) -> Array:
    """The distance to baseline over that of two seeds of each item, in the order of the ids of the items of both."""
    return _ratios(fidelity.to_baseline, fidelity.between_seeds)


def needed_within_seed_noise(fidelity: FidelityDistances, margins: Margins) -> int | None:
    """About how many items would show that a preset is within the limits, if as large a share of them is beyond as of
    these; None where not even very many would."""
    ratios = seed_noise_ratios(fidelity)
    counts = [
        items_for_quantile(
            float((ratios >= limit).mean()), quantile, confidence=margins.confidence, power=margins.power, most=_MOST
        )
        for quantile, limit in ((0.5, margins.seed_noise.median), (0.9, margins.seed_noise.p90))
    ]
    return None if None in counts else max(count for count in counts if count is not None)


def _is_below_limits(rounding: Array, margins: Margins) -> bool:
    """By the bound of the median only: few items give no bound of a high quantile."""
    _, _, median_upper = quantile_bounds(rounding, 0.5, margins.confidence)
    return bool(median_upper < margins.seed_noise.median and np.quantile(rounding, 0.9) < margins.seed_noise.p90)


def _ratios(distances: ByItem, noise: ByItem) -> Array:
    return divided(*_shared_means(distances, noise))
