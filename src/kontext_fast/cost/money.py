"""How dollars, volumes and months are written: digits that a reader can use, ASCII only."""

from __future__ import annotations

import math

from kontext_fast.stats.intervals import Estimate


def usd(value: float) -> str:
    """`$12,345`, `$27.68` or `$0.00277`: whole dollars from 100 on, cents below, three digits below 10 cents."""
    sign = "-" if value < 0 else ""
    size = abs(value)
    if size >= 100:
        return f"{sign}${size:,.0f}"
    if size >= 0.1 or size == 0:
        return f"{sign}${size:.2f}"
    return f"{sign}${size:.{2 - math.floor(math.log10(size))}f}"


def rate(usd_per_hour: float) -> str:
    """`$4.5396` or `$3.00`: what one GPU costs an hour, not rounded to less than its price says."""
    exact = f"{usd_per_hour:.6g}"
    cents = f"{usd_per_hour:.2f}"
    return f"${exact if len(exact) > len(cents) else cents}"


def usd_range(estimate: Estimate) -> str | None:
    """`$781 to $870`, None where there is no interval."""
    if estimate.interval is None:
        return None
    low, high = estimate.interval
    return f"{usd(low)} to {usd(high)}"


def usd_range_short(estimate: Estimate) -> str | None:
    """`781-870`, for places without room, None where there is no interval; empty where both ends are the same."""
    if estimate.interval is None:
        return None
    low, high = estimate.interval
    if usd(low) == usd(high):
        return ""
    if low < 0:
        return f"{usd(low)} to {usd(high)}"
    return "-".join(usd(end).removeprefix("$") for end in (low, high))


def volume(images_per_day: float) -> str:
    """`12,300 images a day`, `the first image` or `never`."""
    if math.isinf(images_per_day):
        return "never"
    if images_per_day <= 1:
        return "the first image"
    return f"{_counted(images_per_day)} a day"


def images(count: float | None) -> str:
    """`622 images`, `never`, or `not measured`; rounded up, since half an image repays nothing."""
    if count is None:
        return "not measured"
    return "never" if math.isinf(count) else _counted(math.ceil(count))


def months(value: float) -> str:
    """`3.4 months`, or `never`."""
    if math.isinf(value):
        return "never"
    return f"{value:.2f} months" if value < 1 else f"{value:.1f} months"


def months_range(interval: tuple[float, float]) -> str | None:
    """`3.1 to 3.9 months` or `3.1 months to never`; None where both ends are written alike."""
    low, high = map(months, interval)
    if low == high:
        return None
    return f"{low} to {high}" if math.isinf(interval[1]) else f"{low.removesuffix(' months')} to {high}"


def _counted(count: float) -> str:
    number = f"{count:,.0f}"
    return f"{number} image" if number == "1" else f"{number} images"
