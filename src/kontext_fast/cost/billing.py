"""What a day's images cost under a billing model. The interval of the measured time goes all the way to the dollars.

    by-use      GPU-hours that were worked, cold starts included
    always-on   24 hours a day of enough whole GPUs for the busiest hour
    reserved    the same at a reserved price, paid used or not

Prices are scenarios, not noise: an interval in dollars comes from the time alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

from kontext_fast.analysis import format as fmt
from kontext_fast.cost import Billing
from kontext_fast.cost.prices import Price
from kontext_fast.cost.work import Work
from kontext_fast.errors import InvalidInput
from kontext_fast.stats.intervals import Estimate

SECONDS_PER_HOUR = 3600.0

RHO_MAX = 0.7
"""Highest load at the peak, as a fraction of what the fleet could do: above it, waiting grows steeply."""

_ROUNDING = 1e-12

LARGEST = 1e12
"""Of anything that is priced: images a day, dollars, seconds."""


def images_per_hour(seconds: float, images_per_call: int) -> float:
    """What one GPU does when it never waits; `seconds` per call, above 0."""
    return SECONDS_PER_HOUR * images_per_call / seconds


def gpus_needed(
    seconds: float, images_per_call: int, peak_images_per_hour: float, *, rho_max: float = RHO_MAX, sold_by: int = 1
) -> int:
    """Whole GPUs, at least one, in multiples of `sold_by`; `seconds` per call, 0 or more.

    Raises InvalidInput for a headroom that is not in 0 (excluded) to 1.
    """
    if not 0 < rho_max <= 1:
        raise InvalidInput(f"The highest load is {rho_max}: give a fraction above 0 and up to 1.")
    wanted = peak_images_per_hour * seconds / (SECONDS_PER_HOUR * images_per_call * rho_max)
    gpus = max(1, math.ceil(wanted * (1 - _ROUNDING)))
    return math.ceil(gpus / sold_by) * sold_by


def most_images_per_day(
    gpus: int, seconds: float, images_per_call: int, *, peak_share: float, rho_max: float = RHO_MAX
) -> float:
    """The largest day whose busiest hour `gpus` can serve."""
    return gpus * images_per_hour(seconds, images_per_call) * rho_max / peak_share


DAYS_PER_MONTH = 365 / 12
HOURS_PER_DAY = 24.0


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What is asked of the fleet."""

    images_per_day: float
    peak_share: float = 1 / HOURS_PER_DAY
    """Of a day's images, what falls into its busiest hour; 1/24 is a load spread evenly over the day."""
    cold_starts_per_day: float = 0.0
    """Counted by use only: a fleet that is always on does not start."""
    days_per_month: float = DAYS_PER_MONTH

    def __post_init__(self) -> None:
        if not 0 < self.images_per_day <= LARGEST:
            raise InvalidInput(
                f"{self.images_per_day:g} images a day cannot be priced: give a number above 0, up to {LARGEST:g}."
            )
        if not 1 / HOURS_PER_DAY <= self.peak_share <= 1:
            raise InvalidInput(f"The peak share is {self.peak_share}: give a fraction from 1/24 (even load) to 1.")
        if not 0 <= self.cold_starts_per_day <= LARGEST:
            raise InvalidInput(
                f"{self.cold_starts_per_day:g} cold starts a day cannot be priced: give 0 or more, up to {LARGEST:g}."
            )
        if not 28 <= self.days_per_month <= 31:
            raise InvalidInput(f"A month of {self.days_per_month} days cannot be priced: give 28 to 31, or 365/12.")

    @property
    def peak_images_per_hour(self) -> float:
        return self.images_per_day * self.peak_share


@dataclass(frozen=True, kw_only=True)
class Tariff:
    """A billing model at a price."""

    billing: Billing
    price: Price
    rho_max: float = RHO_MAX

    def __post_init__(self) -> None:
        if not 0 < self.rho_max <= 1:
            raise InvalidInput(f"The highest load is {self.rho_max}: give a fraction above 0 and up to 1.")
        if (self.billing == "reserved") != (self.price.kind == "reserved"):
            raise InvalidInput(
                f"Price {self.price.id} is of kind {self.price.kind} and cannot be billed {self.billing}: "
                "reserved billing goes with reserved prices, and only with them."
            )


@dataclass(frozen=True)
class Basis:
    """What every number of money stands on."""

    billing: Billing
    price: Price
    stale: bool
    days_per_month: float
    run_ids: tuple[str, ...]

    def __str__(self) -> str:
        stamp = " (stale)" if self.stale else ""
        per_gpu = f"{fmt.usd_rate(self.price.usd_per_gpu_hour)} per GPU-hour"
        runs = f"; time of {', '.join(self.run_ids)}" if self.run_ids else ""
        return f"{self.billing}, {self.price.id} {self.price.day}{stamp}, {per_gpu}{runs}"


@dataclass(frozen=True)
class Cost:
    """US dollars."""

    per_image: Estimate
    per_day: Estimate
    per_month: Estimate
    gpus: int
    """Whole GPUs for the busiest hour; by use they run only while they work."""
    utilization: float
    """Of what is paid, the fraction that makes images."""
    basis: Basis


def cost(work: Work, demand: Demand, tariff: Tariff, *, today: date) -> Cost:
    """What `demand` costs. `today` decides whether the price is stale."""
    per_day = _carried(work.seconds, lambda seconds: usd_per_day(seconds, work, demand, tariff))
    busy = busy_hours(work.seconds.value, work, demand)
    paid = per_day.value / tariff.price.usd_per_gpu_hour
    return Cost(
        per_image=scaled(per_day, 1 / demand.images_per_day),
        per_day=per_day,
        per_month=scaled(per_day, demand.days_per_month),
        gpus=_gpus(work.seconds.value, work, demand, tariff),
        utilization=work.busy_share * busy / paid,
        basis=Basis(
            tariff.billing, tariff.price, tariff.price.is_stale(today), demand.days_per_month, tuple(work.run_ids)
        ),
    )


def usd_per_day(seconds: float, work: Work, demand: Demand, tariff: Tariff) -> float:
    """Dollars a day if a call of `work` took `seconds`; it never falls when `seconds` grow."""
    price = tariff.price.usd_per_gpu_hour
    if tariff.billing == "by-use":
        starting = demand.cold_starts_per_day * (work.cold_start_s or 0.0) / SECONDS_PER_HOUR
        return price * (busy_hours(seconds, work, demand) + starting)
    return price * HOURS_PER_DAY * _gpus(seconds, work, demand, tariff)


def busy_hours(seconds: float, work: Work, demand: Demand) -> float:
    """GPU-hours of a day in which images are made, if a call takes `seconds`."""
    return demand.images_per_day * seconds / (SECONDS_PER_HOUR * work.images_per_call)


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """The estimate in another unit; `factor` is 0 or more."""
    return _carried(estimate, lambda value: value * factor)


def _carried(estimate: Estimate, function: Callable[[float], float]) -> Estimate:
    """`function`, which never falls, of a value that cannot be negative and of both ends of its interval."""
    interval = estimate.interval
    return Estimate(
        function(estimate.value),
        None if interval is None else (function(max(0.0, interval[0])), function(max(0.0, interval[1]))),
        estimate.n,
    )


def _gpus(seconds: float, work: Work, demand: Demand, tariff: Tariff) -> int:
    return gpus_needed(
        seconds,
        work.images_per_call,
        demand.peak_images_per_hour,
        rho_max=work.highest_load(tariff.rho_max),
        # By use, nobody makes you take the other GPUs of the machine. Those of one call are taken together.
        sold_by=work.gpus if tariff.billing == "by-use" else math.lcm(work.gpus, tariff.price.count),
    )
