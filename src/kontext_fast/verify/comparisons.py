"""What single metrics say: distances held against the floor and the noise of seeds, scores against their margins."""

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
    items_needed,
    mean_bounds,
    quantile_bounds,
    ratio_bounds,
)
from kontext_fast.verify.margins import FloorMargins, Margins


class Outcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "undecided"
    BLIND = "blind"
    """Rounding alone would fail, so that nothing follows from it."""


ByItem = Mapping[str, Sequence[float]]
"""Values of an item's seeds."""


@dataclass(frozen=True)
class Fidelity:
    """Distances of one metric, at least 0, by item."""

    metric: str
    to_baseline: ByItem
    floors: Mapping[str, ByItem]
    """By arm: baseline against itself, differing by rounding at most."""
    between_seeds: ByItem = field(default_factory=dict)
    """Of baseline."""
    reordered: ByItem = field(default_factory=dict)
    """Of the preset to itself, with its requests in another order."""


@dataclass(frozen=True)
class Quality:
    """Differences of one metric's scores, preset minus baseline, by item; below 0 is worse."""

    metric: str
    differences: ByItem
    bounded: bool
    """True where scores are yes or no."""


@dataclass(frozen=True)
class FloorFinding:
    """The preset's mean distance over that of the floor's largest arm, on the items of both."""

    metric: str
    outcome: Outcome
    ratio: Ratio
    usual: Ratio
    """The median item's ratio. One edit that amplifies rounding makes a mean of its own."""
    worst: float
    """The preset's largest distance over the arm's, of all items that each has."""
    arm: str
    n: int
    """Items of both."""


@dataclass(frozen=True)
class NoiseFinding:
    """The preset's distance over that of two seeds of baseline, item by item: median and 90th percentile."""

    metric: str
    outcome: Outcome
    median: float
    median_upper: float
    p90: float
    p90_upper: float


@dataclass(frozen=True)
class LossFinding:
    """A primary metric's mean difference with one-sided bounds."""

    metric: str
    outcome: Outcome
    mean: float
    lower: float
    upper: float
    margin: float
    n: int
    needed: int
    """Items that would tell, if the preset had no loss."""


def against_floor(fidelity: Fidelity, distances: ByItem, margins: Margins) -> FloorFinding | None:
    """`distances` against the arm of the floor that is farthest from baseline; None where they share no item.

    Item by item: some edits amplify any rounding, and do so in every arm.
    """
    arm = _largest_floor(fidelity)
    if arm is None:
        return None
    above, below = _of_both(distances, fidelity.floors[arm])
    if len(above) == 0:
        return None
    ratio = ratio_bounds(above, below, margins.confidence)
    worst = float(divided(item_means(distances).max(), item_means(fidelity.floors[arm]).max()))
    usual = Ratio(*quantile_bounds(divided(above, below), 0.5, margins.confidence))
    outcome = _floor_outcome(ratio, usual, worst, len(above), margins.floor)
    return FloorFinding(fidelity.metric, outcome, ratio, usual, worst, arm, len(above))


def _largest_floor(fidelity: Fidelity) -> str | None:
    """The arm of the floor whose mean distance is the largest; None where no arm has any."""
    means = {arm: values.mean() for arm, by_item in fidelity.floors.items() if len(values := item_means(by_item)) > 0}
    return max(means, key=lambda arm: float(means[arm]), default=None)


def _floor_outcome(ratio: Ratio, usual: Ratio, worst: float, n: int, margins: FloorMargins) -> Outcome:
    if max(ratio.lower, usual.lower) > margins.ratio or worst > margins.worst:
        return Outcome.FAILED
    within = max(ratio.upper, usual.upper) <= margins.ratio
    return Outcome.PASSED if within and n >= margins.min_items else Outcome.UNDECIDED


def _of_both(one: ByItem, other: ByItem) -> tuple[Array, Array]:
    """Means over the seeds of every item that has values in both."""
    shared = sorted(item for item in one.keys() & other.keys() if one[item] and other[item])
    return item_means({item: one[item] for item in shared}), item_means({item: other[item] for item in shared})


def item_means(by_item: ByItem) -> Array:
    """One value per item, in the order of the ids."""
    return np.array([sum(values) / len(values) for _, values in sorted(by_item.items()) if values], np.float64)


def against_margins(usable: Sequence[Quality], margins: Margins) -> tuple[LossFinding, ...]:
    """Non-inferiority of each metric by itself, since all have to pass; a loss is claimed with Holm's correction."""
    values = [item_means(one.differences) for one in usable]
    bounds = [
        mean_bounds(array, margins.confidence, bounded=one.bounded) for one, array in zip(usable, values, strict=True)
    ]
    adjusted = holm([float(found.p_loss) for found in bounds])
    findings = []
    for one, array, found, p_value in zip(usable, values, bounds, adjusted, strict=True):
        margin = margins.primary[one.metric]
        if len(array) >= margins.min_items and float(found.lower) > -margin:
            outcome = Outcome.PASSED
        else:
            outcome = Outcome.FAILED if p_value < 1 - margins.confidence else Outcome.UNDECIDED
        needed = items_needed(
            float(array.std(ddof=1)), margin, confidence=margins.confidence, power=margins.power, bounded=one.bounded
        )
        findings.append(
            LossFinding(
                metric=one.metric,
                outcome=outcome,
                mean=float(found.mean),
                lower=float(found.lower),
                upper=float(found.upper),
                margin=margin,
                n=len(array),
                needed=max(needed, margins.min_items),
            )
        )
    return tuple(findings)


def against_seeds(fidelity: Fidelity, margins: Margins) -> NoiseFinding | None:
    """The distances to baseline against those of two seeds of baseline, item by item: an edit with one answer hardly
    has any noise of seeds, an open one has much. None where the margins do not ask for it.

    Blind where rounding alone, the floor's largest arm, is not known to stay below the limits.
    """
    shares = _shares(fidelity.to_baseline, fidelity.between_seeds)
    if fidelity.metric not in margins.seed_noise.metrics or len(shares) == 0:
        return None
    limits = {0.5: margins.seed_noise.median, 0.9: margins.seed_noise.p90}
    found = {quantile: quantile_bounds(shares, quantile, margins.confidence) for quantile in limits}
    arm = _largest_floor(fidelity)
    rounding = _shares({} if arm is None else fidelity.floors[arm], fidelity.between_seeds)
    if len(rounding) and not _leaves_room(rounding, margins):
        outcome = Outcome.BLIND
    elif any(found[quantile][1] > limit for quantile, limit in limits.items()):
        outcome = Outcome.FAILED
    elif all(found[quantile][2] < limit for quantile, limit in limits.items()):
        outcome = Outcome.PASSED
    else:
        outcome = Outcome.UNDECIDED
    (median, _, median_upper), (p90, _, p90_upper) = found[0.5], found[0.9]
    return NoiseFinding(fidelity.metric, outcome, median, median_upper, p90, p90_upper)


def _leaves_room(rounding: Array, margins: Margins) -> bool:
    """The bound of the median only: few items bound no high quantile."""
    _, _, median_upper = quantile_bounds(rounding, 0.5, margins.confidence)
    return bool(median_upper < margins.seed_noise.median and np.quantile(rounding, 0.9) < margins.seed_noise.p90)


def _shares(distances: ByItem, noise: ByItem) -> Array:
    return divided(*_of_both(distances, noise))
