"""Draws times and factors side by side; what is drawn was computed elsewhere."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kontext_fast.analysis import format as fmt
from kontext_fast.records.names import is_peer
from kontext_fast.records.schema import BASELINE, CONTROL
from kontext_fast.report.plots.style import name_left, shortened
from kontext_fast.stats.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which people with any common colour blindness can tell apart.
BASELINE_COLOR, PRESET_COLOR, PEER_COLOR = "#8a8f98", "#0072b2", "#e69f00"
INTERVAL_COLOR, MUTED = "#1c1d1f", "#5f656e"
FAILURE_COLOR = "#a3330b"

FACTOR_TICKS = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)
TICK_DISTANCE = 0.1
"""Least distance of two ticks, as a fraction of the axis."""

WIDTH_IN, ROW_IN, DPI = 12.0, 0.62, 150
NAME_LEFT = 0.15
"""Least room for names, as a fraction of the width."""


@dataclass(frozen=True)
class Bar:
    """One preset as it is plotted; seconds per call."""

    preset: str
    time: Estimate | None
    processes: tuple[float, ...]
    factor: Estimate | None
    note: str | None
    """Written in place of what is missing: the reason of a failure, or why there is no factor."""


@dataclass(frozen=True)
class Panel:
    """One group of comparable runs."""

    title: str
    subtitle: str
    bars: tuple[Bar, ...]
    finding: str


def picture(panels: tuple[Panel, ...]) -> bytes:
    """The PNG; the figure is made without pyplot, so that no global state is touched."""
    from matplotlib.figure import Figure

    heights = [ROW_IN * len(panel.bars) + 1.7 for panel in panels]
    figure = Figure(figsize=(WIDTH_IN, sum(heights)), dpi=DPI, facecolor="white")
    top = sum(heights)
    for panel, height in zip(panels, heights, strict=True):
        _draw_panel(figure, panel, top / sum(heights), height / sum(heights), sum(heights))
        top -= height
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _draw_panel(figure: Any, panel: Panel, top: float, height: float, inches: float) -> None:
    """`top` and `height` are fractions of the figure, which is `inches` high."""
    bottom = top - height + 0.55 / inches
    axes_height = height - 1.7 / inches
    figure.text(0.015, top - 0.38 / inches, panel.title, fontsize=16, fontweight="bold", parse_math=False)
    figure.text(0.015, top - 0.68 / inches, panel.subtitle, fontsize=11, color=MUTED, parse_math=False)
    left = name_left((bar.preset for bar in panel.bars), NAME_LEFT)
    factors = figure.add_axes((0.56, bottom, 0.42, axes_height))
    times = figure.add_axes((left, bottom, 0.51 - left, axes_height), facecolor="none")
    for axes, label in ((times, "seconds per call"), (factors, "times as fast as baseline")):
        _clean(axes, len(panel.bars), label)
    for y, bar in enumerate(panel.bars):
        color = _color(bar.preset)
        times.text(
            -0.02,
            y,
            bar.preset,
            transform=times.get_yaxis_transform(),
            ha="right",
            va="center",
            fontsize=12.5,
            parse_math=False,
        )
        _draw_time(times, y, bar, color)
        _draw_factor(factors, y, bar, color)
    _scale(times, factors, panel)


def _color(preset: str) -> str:
    if preset in (BASELINE, CONTROL):
        return BASELINE_COLOR
    return PEER_COLOR if is_peer(preset) else PRESET_COLOR


def _clean(axes: Axes, bars: int, label: str) -> None:
    axes.set_ylim(bars - 0.45, -0.55)
    axes.set_yticks([])
    axes.set_xlabel(label, fontsize=11, color=MUTED)
    axes.tick_params(axis="x", labelsize=10.5, colors=MUTED, length=0)
    axes.grid(axis="x", color="#e4e6e9", linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_time(axes: Axes, y: int, bar: Bar, color: str) -> None:
    if bar.time is None:
        _write_failure(axes, y, bar)
        return
    axes.barh(y, bar.time.value, height=0.52, color=color, alpha=0.85, linewidth=0)
    if bar.time.interval:
        _whisker(axes, y, bar.time)
    axes.plot(bar.processes, [y] * len(bar.processes), "o", markersize=4, mfc="white", mec=INTERVAL_COLOR, mew=0.8)
    end = max(_extent(bar.time), *bar.processes)
    axes.annotate(
        f"{fmt.seconds_estimate(bar.time)}  n={bar.time.n}",
        (end, y),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=11.5,
    )


def _write_failure(axes: Axes, y: int, bar: Bar) -> None:
    """In the place of its bar and its factor, over both panels."""
    axes.text(
        0.01,
        y,
        shortened(bar.note or "", 108),
        transform=axes.get_yaxis_transform(),
        va="center",
        fontsize=11.5,
        color=FAILURE_COLOR,
        parse_math=False,
    )


def _draw_factor(axes: Axes, y: int, bar: Bar, color: str) -> None:
    if bar.time is None:
        return
    if bar.factor is None:
        axes.annotate(
            bar.note or "", (1.0, y), xytext=(9, 0), textcoords="offset points", va="center", fontsize=11.5, color=MUTED
        )
        return
    if bar.factor.interval:
        _whisker(axes, y, bar.factor)
    axes.plot([bar.factor.value], [y], "o", markersize=10, color=color)
    interval = fmt.factor_range(bar.factor)
    words = f"{fmt.factor(bar.factor)}  ({interval})" if interval else f"{fmt.factor(bar.factor)}  (no interval)"
    axes.annotate(
        words, (_extent(bar.factor), y), xytext=(9, 0), textcoords="offset points", va="center", fontsize=11.5
    )


def _extent(estimate: Estimate) -> float:
    """The right end of its drawing, where the words begin."""
    return max(estimate.value, estimate.interval[1]) if estimate.interval else estimate.value


def _whisker(axes: Axes, y: int, estimate: Estimate) -> None:
    low, high = estimate.interval or (estimate.value, estimate.value)
    axes.plot([low, high], [y, y], color=INTERVAL_COLOR, linewidth=1.6, solid_capstyle="butt")
    axes.plot([low, high], [y, y], "|", color=INTERVAL_COLOR, markersize=9, markeredgewidth=1.6)


def _scale(times: Axes, factors: Axes, panel: Panel) -> None:
    """Times start at zero, so that lengths can be compared; factors are logarithmic, so that 2x and 0.5x are equally
    far from 1. Room is left for the words to the right.
    """
    longest = max(max(_extent(bar.time), *bar.processes) for bar in panel.bars if bar.time)
    times.set_xlim(0, longest * 1.42)
    ends = [1.0]
    for bar in panel.bars:
        if bar.factor:
            ends += [bar.factor.value, *(bar.factor.interval or ())]
    low, high = min(ends), max(ends)
    span = max(math.log(high / low), math.log(1.3))
    limits = (low * math.exp(-0.12 * span), high * math.exp(0.95 * span))
    factors.set_xscale("log")
    factors.set_xlim(*limits)
    ticks = _spread_ticks(*limits)
    factors.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    factors.set_xticks([], minor=True)
    measured = [y for y, bar in enumerate(panel.bars) if bar.time]
    for y in measured:
        factors.plot([1, 1], [y - 0.5, y + 0.5], color=INTERVAL_COLOR, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)


def _spread_ticks(low: float, high: float) -> list[float]:
    """Round factors within the limits, 1 first, that stay apart on a logarithmic axis."""
    apart = TICK_DISTANCE * math.log(high / low)
    kept: list[float] = []
    for tick in sorted(FACTOR_TICKS, key=lambda tick: abs(math.log(tick))):
        if low <= tick <= high and all(abs(math.log(tick / other)) >= apart for other in kept):
            kept.append(tick)
    return kept
