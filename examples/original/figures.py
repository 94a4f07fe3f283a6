"""The original's published figures as data, and each of its rules recomputed by our model."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import date
from importlib.resources import files
from statistics import fmean
from typing import Literal

from pydantic import BaseModel, ConfigDict

from kontext_fast.analysis import format as fmt
from kontext_fast.cost.billing import DAYS_PER_MONTH, Demand, Tariff, busy_hours, gpus_needed
from kontext_fast.cost.payback import payback, savings_per_month
from kontext_fast.cost.prices import Price
from kontext_fast.cost.work import Work
from kontext_fast.stats.intervals import Estimate


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Development(_Data):
    hours: float
    usd_per_hour: float
    break_even_months: float
    """As published."""

    @property
    def usd(self) -> float:
        return self.hours * self.usd_per_hour


class Calculator(_Data):
    baseline_s: float
    optimized_s: float
    reduction_percent: float
    """As published."""


class Savings(_Data):
    usd: float
    where: str
    rule: Literal["rounded-day", "pooled-at-blog-price", "unknown-price", "mean-of-providers", "last-volume"]


class Published(_Data):
    """The original's figures; seconds per image, dollars per hour of one GPU."""

    source: str
    card: str
    day: date
    steps: int
    baseline_s: float
    optimized_s: float
    pooled_baseline_s: float
    pooled_optimized_s: float
    days_per_month: float
    images_per_day: float
    volumes: tuple[int, ...]
    reference_price: str
    blog_usd_per_hour: float
    peak_share: float
    quality: str
    """What it has on quality, in a few words."""
    development: Development
    calculator: Calculator
    usd_per_hour: Mapping[str, float]
    savings: tuple[Savings, ...]

    @property
    def reference_usd_per_hour(self) -> float:
        return self.usd_per_hour[self.reference_price]

    @property
    def mean_usd_per_hour(self) -> float:
        return fmean(self.usd_per_hour.values())


def published() -> Published:
    """The figures as they were published."""
    text = files(__package__).joinpath("figures.toml").read_text(encoding="utf-8")
    return Published.model_validate(tomllib.loads(text))


def work(seconds: float) -> Work:
    """A published mean; no run of ours and no interval stands behind it."""
    return Work(seconds=Estimate(seconds, None, 1))


def hours_saved_per_day(of: Published, *, pooled: bool = False) -> float:
    """GPU-hours."""
    slow, fast = _times(of, pooled)
    demand = Demand(images_per_day=of.images_per_day)
    return busy_hours(slow, work(slow), demand) - busy_hours(fast, work(fast), demand)


def month(
    of: Published,
    usd_per_hour: float,
    *,
    days: float | None = None,
    pooled: bool = False,
    images_per_day: float | None = None,
) -> float:
    """Dollars saved a month, billed by use; the original's 30 days and 10,000 images unless told otherwise."""
    slow, fast = _times(of, pooled)
    demand = Demand(images_per_day=images_per_day or of.images_per_day, days_per_month=days or of.days_per_month)
    return savings_per_month(work(slow), work(fast), demand, tariff(of, usd_per_hour)).value


def tariff(of: Published, usd_per_hour: float) -> Tariff:
    """By use, at a published price."""
    price = Price(
        id="as-published",
        provider="as published",
        product=of.card,
        region="not stated",
        kind="on-demand",
        source=of.source,
        day=of.day,
        usd_per_hour=usd_per_hour,
    )
    return Tariff(billing="by-use", price=price)


def recomputed(of: Published, rule: str) -> tuple[float | None, str]:
    """Dollars a month by our model under one rule of the original, and the rule in words; None where none is known."""
    reference, mean = of.reference_usd_per_hour, of.mean_usd_per_hour
    hours = hours_saved_per_day(of)
    if rule == "rounded-day":
        return month(of, reference), (
            f"{hours:.4f} GPU-hours a day at ${reference} are ${hours * reference:.3f}; it was rounded to "
            f"${round(hours * reference, 1):.2f} before it was multiplied by {of.days_per_month:g}."
        )
    if rule == "pooled-at-blog-price":
        price = of.blog_usd_per_hour
        return month(of, price, pooled=True), (
            f"Other times (pooled means, {hours_saved_per_day(of, pooled=True):.4f} GPU-hours a day) at another price, "
            f"{fmt.usd_rate(price)}, which none of its six providers charges."
        )
    if rule == "mean-of-providers":
        return month(of, mean), f"The first rule at the mean of its six prices, ${mean:.4f}."
    if rule == "last-volume":
        volume = of.volumes[-1]
        return month(of, reference, images_per_day=volume), (
            f'The loop over volumes overwrote the list of savings, so that its "average" is the last volume, '
            f"{volume:,} images a day, ten times the workload it stands beside."
        )
    figure = next(saving.usd for saving in of.savings if saving.rule == rule)
    implied = figure / (hours * of.days_per_month)
    return None, f"It implies ${implied:.2f} per GPU-hour, which stands nowhere in its sources."


def break_even(of: Published, usd_per_month: float) -> float:
    """Months until the published development is paid back."""
    return payback(Estimate(usd_per_month, None, 1), development_usd=of.development.usd).months


def published_break_even(of: Published) -> float:
    """What the overwritten savings make of it."""
    return break_even(of, month(of, of.reference_usd_per_hour, images_per_day=of.volumes[-1]))


def floored_reduction(of: Published) -> float:
    """Fraction saved where fractions of GPUs are cut off, as the original did, which leaves both fleets too small."""
    slow, fast = (int(need) for need in gpus_wanted(of))
    return 1 - fast / slow


def reduction(of: Published) -> float:
    """Fraction of GPU time saved."""
    return 1 - of.calculator.optimized_s / of.calculator.baseline_s


def gpus_wanted(of: Published) -> tuple[float, float]:
    """GPUs that the busiest hour needs at full load, baseline first, not rounded."""
    peak = of.images_per_day * of.peak_share
    return (peak * of.calculator.baseline_s / 3600, peak * of.calculator.optimized_s / 3600)


def gpus_with_headroom(of: Published) -> tuple[int, int]:
    """Whole GPUs by our model for the same hour, baseline first."""
    peak = of.images_per_day * of.peak_share
    calculator = of.calculator
    return gpus_needed(calculator.baseline_s, 1, peak), gpus_needed(calculator.optimized_s, 1, peak)


def true_month(of: Published) -> float:
    """The README's claim with neither rounding nor a month of 30 days."""
    return month(of, of.reference_usd_per_hour, days=DAYS_PER_MONTH)


def _times(of: Published, pooled: bool) -> tuple[float, float]:
    return (of.pooled_baseline_s, of.pooled_optimized_s) if pooled else (of.baseline_s, of.optimized_s)
