"""How every number of a report is written: as many digits as the measurement supports, always a unit, ASCII only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from kontext_fast.records.schema import Memory
from kontext_fast.stats.intervals import LEAST_VALUES, Estimate, Summary

if TYPE_CHECKING:
    from kontext_fast.analysis.rows import ComputedSteps

NOT_MEASURED = "not measured"
NO_INTERVAL = "no interval"

_SAYS_NOTHING = 100


def seconds(value: float | None) -> str:
    """Three significant digits; milliseconds below 0.1 s."""
    if value is None:
        return NOT_MEASURED
    if abs(value) < 0.1:
        return f"{_fixed(value * 1000, _decimals_for(value * 1000))} ms"
    return f"{_fixed(value, _decimals_for(value))} s"


def seconds_range(estimate: Estimate) -> str | None:
    """The interval as `1.10 to 1.16 s`, None where there is none; cut at 0, since no time is below it."""
    unit, scale = ("ms", 1000) if abs(estimate.value) < 0.1 else ("s", 1)
    decimals = _decimals_of(estimate, scale)
    return _range(estimate, lambda bound: _fixed(max(0.0, bound) * scale, decimals), f" {unit}")


def seconds_estimate(estimate: Estimate) -> str:
    """The value with as many digits as its interval supports."""
    unit, scale = ("ms", 1000) if abs(estimate.value) < 0.1 else ("s", 1)
    return f"{_fixed(estimate.value * scale, _decimals_of(estimate, scale))} {unit}"


def seconds_of_runs(summary: Summary) -> str:
    """The mean, or `2 runs: 0.490, 0.570 s` where two processes are all, of which no interval says more."""
    return _each_run(summary) or seconds_estimate(summary.mean)


def seconds_range_of_runs(summary: Summary) -> str | None:
    """`1.10 to 1.16 s`, or `2 runs: 0.490, 0.570 s` in place of an interval; None of a single process."""
    return seconds_range(summary.mean) or _each_run(summary)


def seconds_of_runs_with_interval(summary: Summary) -> str:
    """`1.13 s (1.10 to 1.16 s)`, `2 runs: 0.490, 0.570 s`, or of a single process `1.13 s (no interval)`."""
    return _each_run(summary) or seconds_with_interval(summary.mean)


def _each_run(summary: Summary) -> str | None:
    """None of a single process, and where there is an interval."""
    if summary.mean.interval is not None or summary.mean.n == 1:
        return None
    *others, last = map(seconds, summary.values)
    return f"{summary.mean.n} runs: {', '.join(value.removesuffix(' s') for value in others)}, {last}"


def seconds_with_interval(estimate: Estimate) -> str:
    """`1.13 s (1.10 to 1.16 s)` or `1.13 s (no interval)`."""
    return _with_interval(seconds_estimate(estimate), seconds_range(estimate))


def factor(estimate: Estimate) -> str:
    """`1.62x`: how many times as fast."""
    return f"{_fixed(estimate.value, _factor_decimals(estimate))}x"


def factor_range(estimate: Estimate) -> str | None:
    """`1.55x to 1.70x`, None where there is no interval."""
    return _range(estimate, lambda bound: f"{_fixed(bound, _factor_decimals(estimate))}x")


def factor_with_interval(estimate: Estimate) -> str:
    """`1.62x (1.55x to 1.70x)` or `1.62x (no interval)`."""
    return _with_interval(factor(estimate), factor_range(estimate))


def replication(estimate: Estimate, unit: str) -> str:
    """What an interval rests on: `5 rounds`, `5 rounds of 2 cards`, or `3 cards` where those are the units."""
    if estimate.cards is None or estimate.cards == 1:
        return count(estimate.n, unit)
    if estimate.cards >= LEAST_VALUES:
        return count(estimate.cards, "card")
    return f"{count(estimate.n, unit)} of {count(estimate.cards, 'card')}"


def n_of(estimate: Estimate) -> str:
    """`n=5`, or `n=3 cards`."""
    return f"n={estimate.n}" + (" cards" if (estimate.cards or 0) >= LEAST_VALUES else "")


def factor_range_short(estimate: Estimate) -> str | None:
    """`1.55-1.70`, for places without room; None where there is no interval, or one that says nothing: with one bound
    a hundred times the other."""
    if estimate.interval is None or estimate.interval[1] > _SAYS_NOTHING * estimate.interval[0]:
        return None
    return "-".join(_fixed(bound, _factor_decimals(estimate)) for bound in estimate.interval)


def percent(fraction: float) -> str:
    """A proportion in 0 to 1 as `93 %`, with a decimal only where rounding would claim all or nothing."""
    value = 100 * fraction
    all_or_nothing = round(value) in (0, 100) and value not in (0.0, 100.0)
    return f"{value:.1f} %" if all_or_nothing else f"{value:.0f} %"


def percent_range(estimate: Estimate) -> str | None:
    return _range(estimate, lambda bound: f"{100 * bound:.0f}", " %")


def percent_with_interval(estimate: Estimate) -> str:
    """`67 % (21 to 94 %)`: of few items a proportion says little, and its interval says how little."""
    return _with_interval(percent(estimate.value), percent_range(estimate))


def points(difference: float) -> str:
    """A difference of two proportions, always signed: `-3.0 points`."""
    return f"{100 * difference:+.1f} points"


def points_range(estimate: Estimate) -> str | None:
    return _range(estimate, lambda bound: f"{100 * bound:+.1f}", " points")


def gib(value: int | None) -> str:
    """Bytes as GiB (2**30 bytes), three significant digits."""
    if value is None:
        return NOT_MEASURED
    size = value / 2**30
    return f"{_fixed(size, min(3, _decimals_for(size)))} GiB"


def parameters(count: int) -> str:
    """A count of parameters as `11.9 B`, `10.2 M` or `950`."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def date(created_at: str) -> str:
    """An ISO 8601 time as `2001-02-03`; anything else as it stands."""
    try:
        return datetime.fromisoformat(created_at).date().isoformat()
    except ValueError:
        return created_at


def date_range(created_at: Iterable[str]) -> str:
    """ISO 8601 times as `2001-02-03` or `2001-02-03 to 2001-02-05`."""
    dates = sorted(map(date, created_at))
    return " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else NOT_MEASURED


def computed_steps(steps: ComputedSteps) -> str:
    """Computed steps of all steps: `28 of 28`, or `14.2 of 28` on average where calls differ."""
    mean = str(steps.low) if steps.low == steps.high else f"{steps.mean:.1f}"
    return f"{mean} of {steps.total}"


def computed_steps_range(steps: ComputedSteps) -> str | None:
    """`12 to 16 in a call`, None where all calls agree."""
    return None if steps.low == steps.high else f"{steps.low} to {steps.high} in a call"


_PEAKS = {
    "device_process_peak_bytes": "GPU, whole process",
    "reserved_peak_bytes": "GPU, reserved by torch",
    "allocated_peak_bytes": "GPU, allocated by torch",
    "host_rss_peak_bytes": "host, resident",
}
"""What decides whether a process fits, the one that decides first."""


def _deciding(memory: Memory) -> str | None:
    return next((kind for kind in _PEAKS if getattr(memory, kind) is not None), None)


def deciding_peak(memory: Memory) -> int | None:
    """Bytes of the peak that decides what fits: the process's on the GPU where there is one, else the host's."""
    kind = _deciding(memory)
    return getattr(memory, kind) if kind else None


def peak_memory(memory: Memory) -> str:
    """`deciding_peak` as `35.6 GiB`."""
    return gib(deciding_peak(memory))


def peak_memory_kind(memory: Memory) -> str | None:
    """Which memory `peak_memory` writes, None where it writes none."""
    kind = _deciding(memory)
    return _PEAKS[kind] if kind else None


def peak_memory_detail(memory: Memory) -> str | None:
    """`GPU, whole process, 25.2 GiB of it allocated by torch`."""
    kind, allocated = peak_memory_kind(memory), memory.allocated_peak_bytes
    if kind is None or allocated is None or allocated == deciding_peak(memory):
        return kind
    return f"{kind}, {gib(allocated)} of it allocated by torch"


_USABLE_GIB = {16: 15.6, 24: 23.5, 32: 31.3, 40: 39.4, 48: 44.4, 80: 79.1, 96: 94.9, 141: 139.7}
"""What a process can have of a card that is sold as so many GB."""


def smallest_card(memory: Memory) -> str | None:
    """`fits a 40 GB card`; None where no memory of a GPU was counted."""
    kind, peak = _deciding(memory), deciding_peak(memory)
    if kind in (None, "host_rss_peak_bytes") or peak is None:
        return None
    size = next((size for size, usable in _USABLE_GIB.items() if peak <= usable * 2**30), None)
    return f"fits a {size} GB card" if size else "fits no single card"


def count(n: int, singular: str, plural: str | None = None) -> str:
    """`1 process`, `5 processes`; `plural` is `singular` with an s by default."""
    return f"{n} {singular if n == 1 else plural or singular + 's'}"


def joules(estimate: Estimate) -> str:
    """`1.23 kJ` or `456 J`, three significant digits."""
    unit, scale = ("kJ", 1000) if abs(estimate.value) >= 1000 else ("J", 1)
    value = estimate.value / scale
    return f"{_fixed(value, _decimals_for(value))} {unit}"


def optional(value: Estimate | None, formatted: Callable[[Estimate], str]) -> str:
    """`formatted(value)`, or `not measured` where there is no value."""
    return NOT_MEASURED if value is None else formatted(value)


def usd(value: float) -> str:
    """`$12,345`, `$27.68` or `$0.00277`: whole dollars from 100 on, cents below, three digits below 10 cents."""
    sign = "-" if value < 0 else ""
    size = abs(value)
    if size >= 100:
        return f"{sign}${size:,.0f}"
    if size >= 0.1 or size == 0:
        return f"{sign}${size:.2f}"
    return f"{sign}${size:.{2 - math.floor(math.log10(size))}f}"


def usd_rate(usd_per_hour: float) -> str:
    """`$4.5396` or `$3.00`: what one GPU costs an hour, not rounded to less than its price says."""
    exact = f"{usd_per_hour:.6g}"
    cents = f"{usd_per_hour:.2f}"
    return f"${exact if len(exact) > len(cents) else cents}"


def usd_range(estimate: Estimate) -> str | None:
    """`$781 to $870`, None where there is no interval."""
    return _range(estimate, usd)


def usd_with_interval(estimate: Estimate) -> str:
    """`$830 ($781 to $870)` or `$830 (no interval)`."""
    return _with_interval(usd(estimate.value), usd_range(estimate))


def usd_range_short(estimate: Estimate) -> str | None:
    """`781-870`, for places without room, None where there is no interval; empty where both ends are the same."""
    if estimate.interval is None:
        return None
    low, high = estimate.interval
    if usd(low) == usd(high):
        return ""
    if low < 0:
        return usd_range(estimate)
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
        return NOT_MEASURED
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


def _with_interval(value: str, interval: str | None) -> str:
    return f"{value} ({interval or NO_INTERVAL})"


def _range(estimate: Estimate, bound: Callable[[float], str], unit: str = "") -> str | None:
    """The interval with both ends as `bound` writes them, None where there is none."""
    return None if estimate.interval is None else f"{' to '.join(map(bound, estimate.interval))}{unit}"


def _fixed(value: float, decimals: int) -> str:
    return f"{value:,.{decimals}f}"


def _decimals_for(value: float, digits: int = 3) -> int:
    """Decimals that show `digits` significant digits."""
    if value == 0 or not math.isfinite(value):
        return 0
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))


def _decimals_of(estimate: Estimate, scale: float) -> int:
    """Decimals that show two digits of the half width: at least two and at most five digits of the value."""
    value = estimate.value * scale
    if estimate.interval is None:
        return _decimals_for(value)
    half = (estimate.interval[1] - estimate.interval[0]) / 2 * scale
    wanted = _decimals_for(half, 2) if half > 0 else _decimals_for(value)
    return min(max(wanted, _decimals_for(value, 2)), _decimals_for(value, 5))


def _factor_decimals(estimate: Estimate) -> int:
    if estimate.interval is not None and 0 < estimate.interval[1] - estimate.interval[0] < 0.02:
        return 3
    return 2 if estimate.value < 10 else 1
