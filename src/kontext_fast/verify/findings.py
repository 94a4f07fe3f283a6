"""What single metrics say: distances held against the floor and the noise of seeds, scores against their margins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from kontext_fast.verify.bounds import Array, Ratio, holm, items_needed, mean_bounds, quantile_bounds, ratio_bounds
from kontext_fast.verify.margins import FloorMargins, Margins


class Outcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "undecided"


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
    """The preset's mean distance over that of the floor's largest arm."""

    metric: str
    outcome: Outcome
    ratio: Ratio
    arm: str
    n: int


@dataclass(frozen=True)
class NoiseFinding:
    """The preset's distances over the median distance of two seeds of baseline: median and 90th percentile of items."""

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
    """`distances` against the arm of the floor that is farthest from baseline; None where there is no floor."""
    arms = {arm: values for arm, by_item in fidelity.floors.items() if len(values := item_means(by_item)) > 0}
    above = item_means(distances)
    if not arms or len(above) == 0:
        return None
    arm = max(arms, key=lambda name: float(arms[name].mean()))
    ratio = ratio_bounds(above, arms[arm], margins.confidence)
    n = min(len(above), len(arms[arm]))
    return FloorFinding(fidelity.metric, _floor_outcome(ratio, n, margins.floor), ratio, arm, n)


def _floor_outcome(ratio: Ratio, n: int, margins: FloorMargins) -> Outcome:
    if ratio.lower > margins.ratio or ratio.worst > margins.worst:
        return Outcome.FAILED
    return Outcome.PASSED if ratio.upper <= margins.ratio and n >= margins.min_items else Outcome.UNDECIDED


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
    """The distances to baseline against those of two seeds of baseline; None where the margins do not ask for it."""
    noise = item_means(fidelity.between_seeds)
    if fidelity.metric not in margins.seed_noise.metrics or len(noise) == 0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = item_means(fidelity.to_baseline)
        shares = np.where(distances == 0, 0.0, distances / np.median(noise))
    limits = {0.5: margins.seed_noise.median, 0.9: margins.seed_noise.p90}
    found = {quantile: quantile_bounds(shares, quantile, margins.confidence) for quantile in limits}
    if any(found[quantile][1] > limit for quantile, limit in limits.items()):
        outcome = Outcome.FAILED
    elif all(found[quantile][2] < limit for quantile, limit in limits.items()):
        outcome = Outcome.PASSED
    else:
        outcome = Outcome.UNDECIDED
    (median, _, median_upper), (p90, _, p90_upper) = found[0.5], found[0.9]
    return NoiseFinding(fidelity.metric, outcome, median, median_upper, p90, p90_upper)
