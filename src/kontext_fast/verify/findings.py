"""Faults that a mean cannot show: single outputs that are another picture, outputs far outside of all noise, ignored
seeds, and a change that is larger than what is declared. Beside them, what changed on average, with its sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Final

import numpy as np
from scipy.special import stdtr
from scipy.stats import binom

from kontext_fast.stats.bounds import holm, quantile_bounds
from kontext_fast.stats.intervals import Estimate, mean_estimate
from kontext_fast.verify.comparisons import ByItem, FidelityDistances, FloorComparison
from kontext_fast.verify.margins import Margins

SEEDS_FOLLOWED: Final = 0.5
"""Outputs follow their seeds if they are at least so many times as far apart as those of baseline."""
MIN_SPREADS: Final = 8
"""Items that show whether outputs follow their seeds."""
_NAMED = 3
"""So many examples are named in a sentence."""


@dataclass(frozen=True)
class Repeat:
    """An output that is another picture to rounding, where that of baseline is not."""

    item: str
    seed: int
    what: str


@dataclass(frozen=True)
class Tail:
    """Outputs farther from baseline than its floor and another seed take the same item."""

    metric: str
    beyond: tuple[str, ...]
    """Items, once per output."""
    n: int
    """Outputs that could be compared."""
    rate: float
    """The rate of such outputs that is no fault."""
    p_value: float
    """Of so many outputs or more at that rate, by the binomial distribution."""


@dataclass(frozen=True)
class SignedChange:
    """The mean of a signed change over items, in levels of 0 to 255."""

    direction: str
    estimate: Estimate
    significant: bool
    """With Holm's correction for all directions."""


def compare_tail(fidelity: FidelityDistances, margins: Margins) -> Tail | None:
    """Outputs beyond `margins.tail.factor` times all noise of their item; None where seed noise was not measured.

    The noise of an item is the distance of its seeds and that of its floor together; without a floor of its own it is
    given the median of the floor. The rate to compare with is the margin's, or that of the floor's own outputs where it
    is higher.
    """
    if fidelity.metric not in margins.seed_noise.metrics:
        return None
    noise = {item: max(values) for item, values in fidelity.between_seeds.items() if values}
    floors = [by_item for by_item in fidelity.floors.values() if by_item]
    rounding = [value for by_item in floors for values in by_item.values() for value in values]
    typical = median(rounding) if rounding else 0.0

    def beyond(by_item: ByItem, among: Sequence[ByItem]) -> tuple[list[str], int]:
        items, count = [], 0
        for item in sorted(by_item.keys() & noise.keys()):
            of_floor = [value for floor in among for value in floor.get(item, ())]
            limit = margins.tail.factor * (noise[item] + max([typical, *of_floor]))
            count += len(by_item[item])
            items += [item for value in by_item[item] if value > limit]
        return items, count

    items, n = beyond(fidelity.to_baseline, floors)
    if n == 0:
        return None
    of_floors = [beyond(by_item, ()) for by_item in floors]
    compared = sum(count for _, count in of_floors)
    rate = max(margins.tail.rate, sum(len(found) for found, _ in of_floors) / compared if compared else 0.0)
    p_value = float(binom.sf(len(items) - 1, n, rate)) if items else 1.0
    return Tail(fidelity.metric, tuple(items), n, rate, p_value)


def signed_change(direction: str, by_item: ByItem) -> tuple[SignedChange, float] | None:
    """The change, not yet called significant, with its p-value of a two-sided t-test; None below two items."""
    values = [fmean(values) for values in by_item.values() if values]
    if len(values) < 2:
        return None
    estimate = mean_estimate(values)
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    if error == 0:
        p_value = 0.0 if estimate.value else 1.0
    else:
        p_value = 2 * float(stdtr(len(values) - 1, -abs(estimate.value) / error))
    return SignedChange(direction, estimate, significant=False), p_value


def signed_changes(by_direction: Mapping[str, ByItem], confidence: float) -> tuple[SignedChange, ...]:
    """The changes in all directions, those that are significant marked."""
    tested = [
        change
        for direction, by_item in by_direction.items()
        if (change := signed_change(direction, by_item)) is not None
    ]
    adjusted = holm([p_value for _, p_value in tested])
    return tuple(
        SignedChange(change.direction, change.estimate, significant=p_value < 1 - confidence)
        for (change, _), p_value in zip(tested, adjusted, strict=True)
    )


def repeats_sentence(repeats: Sequence[Repeat]) -> str:
    """What a verdict says of outputs that are another picture."""
    named = "; ".join(f"{repeat.item} with seed {repeat.seed} is {repeat.what}" for repeat in repeats[:_NAMED])
    more = f"; and {len(repeats) - _NAMED} more" if len(repeats) > _NAMED else ""
    outputs = "1 output is" if len(repeats) == 1 else f"{len(repeats)} outputs are"
    return f"{outputs} not an edit of the request but another picture: {named}{more}."


def ignored_seeds(spreads: ByItem, confidence: float) -> str | None:
    """What a verdict says where most items have closer outputs for different seeds than baseline has; else None."""
    values = [fmean(values) for values in spreads.values() if values]
    if len(values) < MIN_SPREADS:
        return None
    middle, _, upper = quantile_bounds(values, 0.5, confidence)
    if upper >= SEEDS_FOLLOWED:
        return None
    return (
        f"Its outputs do not follow their seeds: for another seed they differ {middle:.2g} times as much as those of "
        f"baseline do, at the median of {len(values)} items."
    )


def significant_tail(tails: Sequence[Tail], margins: Margins) -> Tail | None:
    """The most significant tail, corrected for the number of metrics; None without a fault."""
    worst = min(tails, key=lambda tail: tail.p_value, default=None)
    if worst is None or min(1.0, worst.p_value * len(tails)) >= 1 - margins.confidence:
        return None
    return worst


def tail_sentence(tails: Sequence[Tail], margins: Margins) -> str | None:
    """What a verdict says of the most significant tail; None without a fault."""
    worst = significant_tail(tails, margins)
    if worst is None:
        return None
    names = ", ".join(dict.fromkeys(worst.beyond[: 2 * _NAMED]))
    return (
        f"{len(worst.beyond)} of {worst.n} outputs are more than {margins.tail.factor:g} times as far from baseline in "
        f"{worst.metric} as all noise of their item, where {worst.rate * worst.n:.2g} are expected at most ({names})."
    )


def contradiction(floor: Sequence[FloorComparison], margins: Margins) -> FloorComparison | None:
    """The comparison that shows best that an optimization which declares rounding only does more; None without one."""
    beyond = [
        comparison
        for comparison in floor
        if max(comparison.ratio.lower, comparison.median_ratio.lower) > margins.floor.ratio
        and comparison.n >= margins.floor.min_items
    ]
    return max(beyond, key=lambda comparison: comparison.ratio.lower, default=None)


def changes_sentence(changes: Sequence[SignedChange]) -> str | None:
    """What changed on average, the largest change first; None where nothing did beyond chance."""
    significant = [change for change in changes if change.significant and change.estimate.interval is not None]
    if not significant:
        return None
    significant.sort(key=lambda change: -abs(change.estimate.value))
    parts = []
    for change in significant[:_NAMED]:
        low, high = change.estimate.interval or (0.0, 0.0)
        parts.append(f"{change.direction} {change.estimate.value:+.2f} ({low:+.2f} to {high:+.2f})")
    return f"On average it changes {', '.join(parts)}, in levels of 255."
