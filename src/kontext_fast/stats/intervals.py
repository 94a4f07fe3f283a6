"""Interval estimates: means and ratios over processes, means over many items, and proportions of items.

The unit of replication is the process for times and the item for quality; values inside one are subsamples. Processes
of one card may be alike, so that the unit is the card wherever enough of them were measured.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

CONFIDENCE = 0.95

LEAST_VALUES = 3
"""Below this many independent values a t-interval is None: of two it has one degree of freedom and reaches 12.7
standard errors, so that it says nothing, and whoever reads it learns more from the two values."""


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval and how many units of replication it rests on."""

    value: float
    interval: tuple[float, float] | None
    """None where n is too small to give one."""
    n: int
    cards: int | None = None
    """How many cards were measured. From `LEAST_VALUES` on they are the units of replication and `n` counts them; of
    fewer the interval is one over processes of these cards, and does not cover others. None where that is not known."""

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


def card_values(values: Sequence[float], cards: Sequence[Hashable]) -> list[float]:
    """The mean of each card's `values` where there are `LEAST_VALUES` cards, else the values as they are.

    `cards` has the card of each value, or nothing where that is not known.
    """
    by_card: dict[Hashable, list[float]] = {}
    for value, card in zip(values, cards, strict=True) if cards else ():
        by_card.setdefault(card, []).append(value)
    return [float(np.mean(of_card)) for of_card in by_card.values()] if len(by_card) >= LEAST_VALUES else list(values)


def process_value(values: Mapping[str, Sequence[float]]) -> float:
    """The one value of a process: the mean over items of each item's mean, so that every item weighs the same.

    Raises ValueError where there is no item or an item without values.
    """
    if not values or not all(values.values()):
        raise ValueError("a process value needs at least one item, and at least one value of each")
    return float(np.mean([np.mean(of_item) for of_item in values.values()]))


def summarize(values: Sequence[float], cards: Sequence[Hashable] = ()) -> Summary:
    """Mean with its t-interval and median of one value per process, of which `cards` has each one's card.

    Raises ValueError for no values.
    """
    if not values:
        raise ValueError("there is nothing to summarize")
    return Summary(mean=mean_estimate(values, cards), median=float(np.median(values)), values=tuple(values))


def mean_estimate(values: Sequence[float], cards: Sequence[Hashable] = ()) -> Estimate:
    """The mean of independent values and its two-sided t-interval, None below `LEAST_VALUES`.

    Where `cards` names the card of each value, and there are enough of them, both are of the cards' means.
    """
    units, different = card_values(values, cards), len(set(cards)) or None
    n = len(units)
    mean = float(np.mean(units))
    if n < LEAST_VALUES:
        return Estimate(mean, None, n, different)
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * float(np.std(units, ddof=1)) / math.sqrt(n)
    return Estimate(mean, (mean - half, mean + half), n, different)


_RESAMPLES = 9999


def bootstrap_mean(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of one value per item with its BCa bootstrap interval; the same `seed` gives the same interval.

    Below 30 items the interval is None: the bootstrap is then too narrow by an unknown amount.
    Raises ValueError for no values.
    """
    if not values:
        raise ValueError("there is nothing to resample")
    mean = float(np.mean(values))
    if len(values) < MIN_ITEMS:
        return Estimate(mean, None, len(values))
    if min(values) == max(values):
        return Estimate(mean, (mean, mean), len(values))
    from scipy import stats

    interval = stats.bootstrap(
        (np.asarray(values, dtype=float),),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean, (float(interval.low), float(interval.high)), len(values))


def ratio_interval(
    baseline_by_round: Mapping[int, float],
    other_by_round: Mapping[int, float],
    card_of_round: Mapping[int, Hashable] | None = None,
) -> Estimate | None:
    """The factor baseline / other: above 1 where the other one takes less time.

    Both map a round to the positive value of the process that ran in it. Pairing by round removes what a round's
    processes share, such as a warm room. The value is the geometric mean of the per-round ratios; the interval is the
    t-interval of their logarithms, None below `LEAST_VALUES` rounds. `n` counts the rounds that both have, or their
    cards where `card_of_round` names enough of them. None where they share no round.
    """
    logs = log_ratios(baseline_by_round, other_by_round)
    shared = sorted(baseline_by_round.keys() & other_by_round.keys())
    cards = [card_of_round[round_] for round_ in shared] if card_of_round else []
    return exponential_of(mean_estimate(logs, cards)) if logs else None


def log_ratios(baseline_by_round: Mapping[int, float], other_by_round: Mapping[int, float]) -> list[float]:
    """log(baseline / other) of every round that both have, in the order of the rounds."""
    rounds = sorted(baseline_by_round.keys() & other_by_round.keys())
    return [math.log(baseline_by_round[round_]) - math.log(other_by_round[round_]) for round_ in rounds]


def unpaired_log_ratio(before: Sequence[float], after: Sequence[float]) -> Estimate | None:
    """mean(after) - mean(before) of logarithms with Welch's t-interval, which lets the two spread differently.

    None where one side is empty; the interval is None where one side has fewer than `LEAST_VALUES`.
    """
    if not before or not after:
        return None
    difference = float(np.mean(after) - np.mean(before))
    n = min(len(before), len(after))
    if n < LEAST_VALUES:
        return Estimate(difference, None, n)
    error, freedom = welch_error(before, after)
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return Estimate(difference, (difference - half, difference + half), n)


def welch_error(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Standard error of mean(after) - mean(before), and its degrees of freedom. Each side has at least two values."""
    shares = [float(np.var(values, ddof=1)) / len(values) for values in (before, after)]
    variance = sum(shares)
    if variance == 0:
        return 0.0, float(min(len(before), len(after)) - 1)
    spread = sum(share**2 / (len(values) - 1) for share, values in zip(shares, (before, after), strict=True))
    return math.sqrt(variance), variance**2 / spread


def exponential_of(of_logs: Estimate | None) -> Estimate | None:
    """The factor whose logarithm was estimated."""
    if of_logs is None:
        return None
    bounds = of_logs.interval
    interval = None if bounds is None else (math.exp(bounds[0]), math.exp(bounds[1]))
    return Estimate(math.exp(of_logs.value), interval, of_logs.n, of_logs.cards)


MIN_ITEMS = 30
"""Below this many items a difference of acceptance gets no interval."""

_Z = float(ndtri((1 + CONFIDENCE) / 2))


def acceptance(fraction_by_item: Mapping[str, float]) -> Estimate | None:
    """Mean accepted fraction over items with its Wilson interval; None where there is no item.

    With several outputs per item the interval is wider than needed, never too narrow: each item is one trial.
    """
    if not fraction_by_item:
        return None
    return wilson(math.fsum(fraction_by_item.values()), len(fraction_by_item))


def wilson(accepted: float, n: int) -> Estimate:
    """Wilson's score interval of a proportion; `accepted` of `n` trials, `n` at least 1."""
    if n < 1 or not 0 <= accepted <= n:
        raise ValueError(f"{accepted} of {n} is not a proportion")
    p = accepted / n
    scale = 1 + _Z**2 / n
    center = (p + _Z**2 / (2 * n)) / scale
    half = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2)) / scale
    return Estimate(p, (max(0.0, center - half), min(1.0, center + half)), n)


def paired_difference(baseline_by_item: Mapping[str, float], other_by_item: Mapping[str, float]) -> Estimate | None:
    """Acceptance of other minus baseline, in -1 to 1, over the items that both have; None where there are none.

    The interval is None below `MIN_ITEMS` items. It is Bonett and Price's adjusted Wald interval for paired
    proportions, which adds one item for and one against and so does not collapse when all items agree.
    """
    items = sorted(baseline_by_item.keys() & other_by_item.keys())
    if not items:
        return None
    differences = [other_by_item[item] - baseline_by_item[item] for item in items]
    value = float(np.mean(differences))
    if len(items) < MIN_ITEMS:
        return Estimate(value, None, len(items))
    adjusted = np.array([*differences, 1.0, -1.0])
    center = float(adjusted.mean())
    half = _Z * float(adjusted.std()) / math.sqrt(len(adjusted))
    return Estimate(value, (max(-1.0, center - half), min(1.0, center + half)), len(items))
