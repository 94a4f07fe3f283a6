"""How many cards serve a load by a deadline, from measured times of a call: a queueing model of a server.

Requests come as a Poisson process at the rate of the busiest hour, wait in one queue and run on the first card that is
free, each for a time that is drawn from the measured ones. The share that waits is Erlang's C formula. How long those
wait is taken as exponential, with the mean of Allen and Cunneen for general service times (A. O. Allen, "Probability,
Statistics, and Queueing Theory", 1990, section 5.3.5). Nothing fails, nobody leaves, and no card runs out of memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.ranking import headline_group_first
from kontext_fast.analysis.rows import Row
from kontext_fast.cost import Billing
from kontext_fast.cost.billing import HOURS_PER_DAY, SECONDS_PER_HOUR, Demand
from kontext_fast.cost.prices import Price, PriceTable, card_of
from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import CONTROL

MAX_LOAD = 0.9
"""Above it, waits grow so steeply with the load that no plan should rely on a forecast of it."""
_SOLVED_TO = 1e-6
"""How near to a percentile of the latency its solution is, as a part of the mean call."""


@dataclass(frozen=True)
class Capacity:
    """Cards, and what their clients are expected to see."""

    cards: int
    load: float
    """Share of the time in which a card runs a job, in the busiest hour."""
    latency_p50_s: float
    latency_p95_s: float
    """From the request to its image, without the network."""


@dataclass(frozen=True)
class PresetCapacity:
    """What one preset needs for a load; `capacity` is None where that cannot be said, and `note` says why."""

    preset: str
    capacity: Capacity | None
    note: str | None
    usd_per_month: Mapping[Billing, float]
    """Under every billing model for which the card has a price."""


def group_for_capacity(groups: Iterable[AnalyzedGroup], card: str | None) -> AnalyzedGroup:
    """The group that a report leads with, of those measured on `card`. Raises InvalidInput where there is none."""
    measured = [group for group in groups if group.runs and group.workload and group.workload.batch == 1]
    if not measured:
        raise InvalidInput("No single calls were measured there: name a folder that kontext bench wrote.")
    fitting = [group for group in measured if card is None or card_of(group.machine) == card]
    if not fitting:
        cards = sorted({card_of(group.machine) or group.machine or "an unknown machine" for group in measured})
        raise InvalidInput(f"Nothing was measured on {card} there, but on {', '.join(cards)}; name one of them.")
    return headline_group_first(fitting)[0]


def plan_capacity(
    group: AnalyzedGroup, demand: Demand, deadline_s: float, table: PriceTable
) -> tuple[PresetCapacity, ...]:
    """What each preset of `group` needs, slow to fast. Raises InvalidInput for a deadline that is no time."""
    if not (math.isfinite(deadline_s) and deadline_s > 0):
        raise InvalidInput(f"A deadline of {deadline_s} s cannot be met: give a time above 0.")
    card = card_of(group.machine)
    prices: dict[Billing, Price | None] = {
        "by-use": table.typical(card, "on-demand"),
        "always-on": table.typical(card, "on-demand"),
        "reserved": table.typical(card, "reserved"),
    }
    return tuple(
        _preset_capacity(group, row, demand, deadline_s, {name: price for name, price in prices.items() if price})
        for row in group.ranked
        if row.preset != CONTROL
    )


def _preset_capacity(
    group: AnalyzedGroup, row: Row, demand: Demand, deadline_s: float, prices: Mapping[Billing, Price]
) -> PresetCapacity:
    if row.no_speed:
        return PresetCapacity(row.preset, None, row.no_speed, {})
    calls = [sample.wall_s for run in group.runs_of(row.preset) for sample in run.samples]
    try:
        capacity = cards_for(calls, demand.peak_images_per_hour / SECONDS_PER_HOUR, deadline_s)
    except InvalidInput as error:
        return PresetCapacity(row.preset, None, str(error), {})
    busy_hours = demand.images_per_day * float(np.mean(calls)) / SECONDS_PER_HOUR
    usd = {
        billing: demand.days_per_month * price.usd_per_gpu_hour * _paid_hours(billing, busy_hours, capacity, price)
        for billing, price in prices.items()
    }
    return PresetCapacity(row.preset, capacity, None, usd)


def _paid_hours(billing: Billing, busy_hours: float, capacity: Capacity, price: Price) -> float:
    """GPU-hours of a day; by use those that were worked, else all of whole machines."""
    if billing == "by-use":
        return busy_hours
    return HOURS_PER_DAY * price.count * math.ceil(capacity.cards / price.count)


def cards_for(calls_s: Sequence[float], requests_per_s: float, deadline_s: float) -> Capacity:
    """The fewest cards whose p95 latency is at most `deadline_s`, for calls that take `calls_s` seconds each.

    Raises InvalidInput where no number of cards is enough: 5 % of the calls alone take as long.
    """
    mean = float(np.mean(calls_s))
    # More and more cards come as near to this as latencies are solved for, and no nearer.
    alone = latency_percentile(0.95, 1, calls_s, 0.0)
    if alone + 10 * _SOLVED_TO * mean > deadline_s:
        raise InvalidInput(
            f"5 % of its calls alone take {alone:.3g} s or more, so no number of cards meets {deadline_s:g} s."
        )
    low = max(1, math.ceil(requests_per_s * mean / MAX_LOAD))
    high = low
    while _p95(calls_s, requests_per_s, high) > deadline_s:
        low, high = high + 1, 2 * high
    while low < high:
        middle = (low + high) // 2
        if _p95(calls_s, requests_per_s, middle) > deadline_s:
            low = middle + 1
        else:
            high = middle
    return capacity_of(low, calls_s, requests_per_s)


def capacity_of(cards: int, calls_s: Sequence[float], requests_per_s: float) -> Capacity:
    """What clients of so many cards see. Raises InvalidInput for more requests than the cards can run."""
    load = requests_per_s * float(np.mean(calls_s)) / cards
    if load >= 1:
        raise InvalidInput(f"{cards} cards cannot run {requests_per_s:.3g} requests a second: the queue never ends.")
    p50, p95 = (latency_percentile(share, cards, calls_s, requests_per_s) for share in (0.5, 0.95))
    return Capacity(cards, load, p50, p95)


def latency_percentile(share: float, cards: int, calls_s: Sequence[float], requests_per_s: float) -> float:
    """Seconds within which `share` of the requests have their image; the load must be below 1."""
    calls = np.asarray(calls_s, dtype=float)
    mean = float(calls.mean())
    spare_per_s = cards / mean - requests_per_s
    waiting = erlang_c(cards, requests_per_s * mean)
    # Of those that wait: the mean of an exponential service, halved as far as the service varies less.
    wait_s = (1 + float(calls.var()) / mean**2) / 2 / spare_per_s

    def late(latency_s: float) -> float:
        """The share of requests that take longer, less the share that may."""
        left = latency_s - calls
        return float(np.where(left < 0, 1.0, waiting * np.exp(-np.maximum(left, 0) / wait_s)).mean()) - (1 - share)

    highest = float(calls.max()) + wait_s * max(0.0, math.log(waiting / (1 - share))) if waiting > 0 else calls.max()
    return float(brentq(late, 0.0, 1.001 * float(highest), xtol=_SOLVED_TO * mean))


def erlang_c(cards: int, offered: float) -> float:
    """Probability that a request waits, at `offered` = rate x mean time, below `cards`."""
    blocked = 1.0
    for number in range(1, cards + 1):
        blocked = offered * blocked / (number + offered * blocked)
    load = offered / cards
    return blocked / (1 - load * (1 - blocked))


def _p95(calls_s: Sequence[float], requests_per_s: float, cards: int) -> float:
    return latency_percentile(0.95, cards, calls_s, requests_per_s)
