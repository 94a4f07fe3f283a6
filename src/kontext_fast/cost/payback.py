"""What a faster preset saves under one billing model, and when that pays back what it took to get there.

Months and images are `math.inf` where they never come.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date

from kontext_fast.analysis import format as fmt
from kontext_fast.cost import Billing
from kontext_fast.cost.billing import HOURS_PER_DAY, Cost, Demand, Tariff, cost, scaled, usd_per_day
from kontext_fast.cost.prices import Kind, load_prices, user_price
from kontext_fast.cost.work import Work
from kontext_fast.errors import InvalidInput
from kontext_fast.stats.intervals import Estimate

MONTHS_PER_YEAR = 12
NEVER = math.inf


@dataclass(frozen=True)
class Payback:
    """Of a one-off expense, after what keeping the preset costs every month."""

    months: float
    """Until it is paid back."""
    months_interval: tuple[float, float] | None
    first_year_return: float
    """(A year's net savings - the expense) / the expense."""


def savings_per_month(
    baseline: Work, other: Work, demand: Demand, tariff: Tariff, *, paired_half_s: float | None = None
) -> Estimate:
    """Dollars a month that `other` saves, each with a fleet of its own, so that a fleet saves in steps.

    `paired_half_s` is the half width of the interval of the time saved per call, from runs paired by round. It gives
    the interval by use, where money is linear in time. Elsewhere, and without it, the interval spans the worst and the
    best case of both times, which is wider than 95 %. None where either time has no interval.
    """

    def per_day(work: Work, seconds: float) -> float:
        return usd_per_day(max(0.0, seconds), work, demand, tariff)

    saved = per_day(baseline, baseline.seconds.value) - per_day(other, other.seconds.value)
    n = min(baseline.seconds.n, other.seconds.n)
    interval: tuple[float, float] | None = None
    slow, fast = baseline.seconds.interval, other.seconds.interval
    if tariff.billing == "by-use" and paired_half_s is not None:
        calls = demand.images_per_day / baseline.images_per_call
        half = tariff.price.usd_per_gpu_hour * calls * paired_half_s / 3600
        interval = (saved - half, saved + half)
    elif slow is not None and fast is not None:
        interval = (
            per_day(baseline, slow[0]) - per_day(other, fast[1]),
            per_day(baseline, slow[1]) - per_day(other, fast[0]),
        )
    days = demand.days_per_month
    if interval is not None:
        interval = (interval[0] * days, interval[1] * days)
    return Estimate(saved * days, interval, n)


def payback(savings: Estimate, *, development_usd: float, upkeep_usd_per_month: float = 0.0) -> Payback:
    """When monthly `savings` pay `development_usd` back. Raises InvalidInput for an expense that is not above 0."""
    if not (math.isfinite(development_usd) and development_usd > 0):
        raise InvalidInput(f"A development of {development_usd} dollars cannot pay back: give a sum above 0.")
    if not (math.isfinite(upkeep_usd_per_month) and upkeep_usd_per_month >= 0):
        raise InvalidInput(f"An upkeep of {upkeep_usd_per_month} dollars cannot be used: give 0 or more.")

    def months(saved: float) -> float:
        net = saved - upkeep_usd_per_month
        return development_usd / net if net > 0 else NEVER

    interval = savings.interval
    net = savings.value - upkeep_usd_per_month
    return Payback(
        months=months(savings.value),
        months_interval=None if interval is None else (months(interval[1]), months(interval[0])),
        first_year_return=(MONTHS_PER_YEAR * net - development_usd) / development_usd,
    )


def images_to_repay_start(baseline: Work, other: Work) -> float | None:
    """Images after one start until the faster calls have made up for the longer preparation, compilation included.

    0 where it is no longer, `NEVER` where the calls are not faster, None where a preparation was not measured.
    """
    if baseline.prepare_s is None or other.prepare_s is None:
        return None
    longer = other.prepare_s - baseline.prepare_s
    if longer <= 0:
        return 0.0
    saved = _per_image(baseline) - _per_image(other)
    return longer / saved if saved > 0 else NEVER


def _per_image(work: Work) -> float:
    return scaled(work.seconds, 1 / work.images_per_call).value


@dataclass(frozen=True)
class Savings:
    """What the same images cost at two times per call. Money is in US dollars."""

    before: Cost
    after: Cost
    per_month: Estimate
    """Less is paid; below 0 more is. Without an interval, since nothing is known of the spread of the times."""

    @property
    def fraction(self) -> float:
        """Of what was paid before."""
        return self.per_month.value / self.before.per_month.value

    def __repr__(self) -> str:
        before, after = self.before.per_month.value, self.after.per_month.value
        return (
            f"{fmt.usd(self.per_month.value)} a month saved ({fmt.percent(self.fraction)}): {fmt.usd(after)} instead "
            f"of {fmt.usd(before)}, {self.after.gpus} instead of {self.before.gpus} GPUs; {self.after.basis}"
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{name}</th><td>{fmt.usd(paid.per_image.value)}</td><td>{fmt.usd(paid.per_month.value)}</td>"
            f"<td>{paid.gpus}</td></tr>"
            for name, paid in (("before", self.before), ("after", self.after))
        )
        head = "<tr><th></th><th>per image</th><th>per month</th><th>GPUs</th></tr>"
        saved = f"{fmt.usd(self.per_month.value)} a month saved ({fmt.percent(self.fraction)})"
        return f"<table><caption>{saved}; {self.after.basis}</caption>{head}{rows}</table>"


def savings(
    seconds: float,
    faster_seconds: float,
    *,
    price: float | str,
    images_per_day: float,
    images_per_call: int = 1,
    billing: Billing = "by-use",
    peak_share: float = 1 / HOURS_PER_DAY,
) -> Savings:
    """What `images_per_day` cost at `seconds` and at `faster_seconds` per call, and the difference.

    `price` is in dollars per GPU-hour, or the id of a row of the price table. `peak_share` is what of a day's images
    falls into the busiest hour. Raises InvalidInput for a value that cannot be priced.
    """
    today = date.today()
    kind: Kind = "reserved" if billing == "reserved" else "on-demand"
    chosen = user_price(str(price), billing_kind=kind, today=today) or load_prices().named(str(price))
    demand = Demand(images_per_day=images_per_day, peak_share=peak_share)
    tariff = Tariff(billing=billing, price=chosen)
    slow, fast = (
        Work(seconds=Estimate(value, None, 1), images_per_call=images_per_call) for value in (seconds, faster_seconds)
    )
    before, after = (cost(work, demand, tariff, today=today) for work in (slow, fast))
    return Savings(before, after, savings_per_month(slow, fast, demand, tariff))
