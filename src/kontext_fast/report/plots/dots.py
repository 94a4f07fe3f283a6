"""Draws what a verification measured: rows of distributions with their means, and presets as dots of quality against
time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from kontext_fast.report.plots import style
from kontext_fast.report.plots.rows import Rows, rows_in
from kontext_fast.report.plots.style import Canvas, Picture, Slot
from kontext_fast.report.plots.svg import tip
from kontext_fast.stats.intervals import wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DotKind = Literal["baseline", "preset", "floor", "control"]

DOT_COLORS: dict[DotKind, str] = {
    "baseline": style.BASELINE_COLOR,
    "preset": style.PRESET_COLOR,
    "floor": style.GREEN,
    "control": style.VERMILION,
}
DOT_NAMES: dict[DotKind, str] = {
    "baseline": "baseline",
    "preset": "presets",
    "floor": "baseline again, other rounding",
    "control": "worse on purpose",
}
DOT_ROW_IN = 0.32


@dataclass(frozen=True)
class DotRow:
    label: str
    kind: DotKind
    values: tuple[float, ...]
    bounds: tuple[float, float] | None = None
    """One-sided bounds of the mean."""


@dataclass(frozen=True)
class DotPanel:
    title: str
    axis: str
    rows: tuple[DotRow, ...]
    log: bool = False
    """Distances: zeros are drawn at the left edge."""
    rates: bool = False
    """Scores are yes or no, so a row is its share of yes."""
    margin: float | None = None
    """A loss up to this counts as none; it is drawn left of zero."""
    subtitle: str = ""


def dot_picture(headline: str, panels: Sequence[DotPanel]) -> Picture:
    kinds = {row.kind for panel in panels for row in panel.rows}
    names = [(DOT_NAMES[kind], color) for kind, color in DOT_COLORS.items() if kind in kinds]
    return style.panels_picture(
        headline,
        panels,
        lambda panel, canvas: rows_in(len(panel.rows), canvas, DOT_ROW_IN),
        _draw_dot_panel,
        names,
    )


def _draw_dot_panel(slot: Slot, panel: DotPanel) -> None:
    from matplotlib.ticker import FuncFormatter

    rows = Rows(slot, [row.label for row in panel.rows], panel.axis)
    floor = min((value for row in panel.rows for value in row.values if value > 0), default=1e-6) / 3
    if panel.log:
        rows.axes.set_xscale("log")
        rows.axes.set_xlim(floor / 1.5, 1.5 * max(max(row.values, default=0) for row in panel.rows) or 1)
        rows.axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        rows.axes.minorticks_off()
    for number, row in enumerate(panel.rows):
        rows.name(number, row.label, style.INK if row.kind in ("baseline", "preset") else style.MUTED)
        if row.values:
            values = np.maximum(row.values, floor) if panel.log else np.asarray(row.values)
            _draw_row(rows, number, row, values, rates=panel.rates)
    if panel.margin is not None:
        low, high = rows.axes.get_xlim()
        rows.axes.set_xlim(min(low, -1.15 * panel.margin), max(high, 0.3 * panel.margin))
        rows.axes.axvspan(-panel.margin, 0, color=style.GREEN, alpha=0.14, linewidth=0, zorder=0)
        rows.axes.axvline(0, color=style.INK, linewidth=1)
    for number, row in enumerate(panel.rows):
        if row.values:
            rows.hit(number, _said(row, rates=panel.rates))


def _draw_row(rows: Rows, number: int, row: DotRow, values: np.ndarray, *, rates: bool) -> None:
    y, color = rows.middle(number), DOT_COLORS[row.kind]
    if rates:
        share = wilson(float(values.sum()), len(values))
        style.whisker(rows.axes, y, share.interval)
        middle = share.value
    elif row.bounds is None:
        low, first, middle, third, high = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95))
        rows.axes.plot([low, high], [y, y], color=color, linewidth=1.6, solid_capstyle="butt")
        rows.axes.plot([first, third], [y, y], color=color, linewidth=7, alpha=0.55, solid_capstyle="butt")
    else:
        style.whisker(rows.axes, y, row.bounds)
        middle = float(np.mean(values))
    rows.axes.plot([middle], [y], "D", markersize=6, color=color, markeredgecolor=style.PAPER, markeredgewidth=0.9)


def _said(row: DotRow, *, rates: bool) -> str:
    n = f"n={len(row.values)}"
    if rates:
        return f"{row.label}: {100 * float(np.mean(row.values)):.1f} %; {n}"
    if row.bounds is not None:
        low, high = row.bounds
        return f"{row.label}: mean {float(np.mean(row.values)):.3g}, bounds {low:.3g} and {high:.3g}; {n}"
    low, middle, high = np.quantile(row.values, (0.05, 0.5, 0.95))
    return f"{row.label}: median {middle:.3g}, 90 % of outputs from {low:.3g} to {high:.3g}; {n}"


FrontierKind = Literal["baseline", "preset", "steps"]

FRONTIER_COLORS: dict[FrontierKind, str] = {
    "baseline": style.MUTED,
    "preset": style.PRESET_COLOR,
    "steps": style.VERMILION,
}
MARKERS: dict[FrontierKind, str] = {"baseline": "D", "preset": "o", "steps": "s"}
NEAR = 0.045
"""Labels whose points are nearer than this share of the panel would cover each other."""


@dataclass(frozen=True)
class FrontierDot:
    label: str
    kind: FrontierKind
    time_s: float
    time_range_s: tuple[float, float]
    """Fastest and slowest single edit."""
    change: float
    """As drawn: in points where scores are bounded."""
    bounds: tuple[float, float]
    """One-sided bounds of the mean change."""


@dataclass(frozen=True)
class FrontierPanel:
    title: str
    axis: str
    dots: tuple[FrontierDot, ...]
    margin: float
    """A loss up to this counts as none; in the unit of the changes."""
    subtitle: str = ""


def frontier_picture(headline: str, panels: Sequence[FrontierPanel]) -> Picture:
    return style.panels_picture(headline, panels, _frontier_in, _draw_frontier)


def _frontier_in(_: FrontierPanel, canvas: Canvas) -> float:
    return 4.2 if canvas.narrow else 4.9


def _draw_frontier(slot: Slot, panel: FrontierPanel) -> None:
    axes = slot.axes(0.17 if slot.canvas.narrow else 0.085, 0.975)
    axes.axhspan(-panel.margin, 0, color=style.GREEN, alpha=0.14, linewidth=0, zorder=0)
    axes.axhline(0, color=style.INK, linewidth=1, zorder=1)
    line = sorted((dot for dot in panel.dots if dot.kind != "preset"), key=lambda dot: dot.time_s)
    axes.plot(
        [dot.time_s for dot in line],
        [dot.change for dot in line],
        color=FRONTIER_COLORS["steps"],
        linewidth=1.2,
        linestyle=style.DASHED,
        zorder=2,
    )
    for dot in panel.dots:
        color = FRONTIER_COLORS[dot.kind]
        axes.plot([dot.time_s] * 2, dot.bounds, color=color, linewidth=1.4, alpha=0.6)
        axes.plot(dot.time_range_s, [dot.change] * 2, color=color, linewidth=1.4, alpha=0.6)
        (mark,) = axes.plot(
            [dot.time_s],
            [dot.change],
            MARKERS[dot.kind],
            markersize=9,
            color=color,
            markeredgecolor=style.PAPER,
            zorder=4,
        )
        tip(mark, f"{dot.label}: {dot.time_s:.3g} s, {dot.change:+.3g} ({dot.bounds[0]:+.3g} to {dot.bounds[1]:+.3g})")
    _scale_frontier(axes, panel)
    _label_frontier(axes, panel)


def _scale_frontier(axes: Axes, panel: FrontierPanel) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    low = min(dot.time_range_s[0] for dot in panel.dots)
    high = max(dot.time_range_s[1] for dot in panel.dots)
    axes.set_xlim(low / 1.25, high * 1.45)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g} s" if value >= 0.1 else f"{1e3 * value:g} ms")
    )
    axes.xaxis.set_minor_formatter(NullFormatter())
    bounds = [bound for dot in panel.dots for bound in dot.bounds] + [-panel.margin]
    reach = max(bounds) - min(bounds) or 1.0
    axes.set_ylim(min(bounds) - 0.08 * reach, max(*bounds, 0) + 0.16 * reach)
    style.clean(axes, "both", x="time of one edit, logarithmic; left is faster", y=panel.axis)


def _label_frontier(axes: Axes, panel: FrontierPanel) -> None:
    """Names beside the points, those of steps below the line through them; moved until they cover no other name."""
    taken: list[tuple[float, float]] = []
    to_axes = axes.transData + axes.transAxes.inverted()
    order: dict[FrontierKind, int] = {"preset": 0, "baseline": 1, "steps": 2}
    for dot in sorted(panel.dots, key=lambda dot: (order[dot.kind], dot.time_s)):
        x, y = to_axes.transform((dot.time_s, dot.change))
        away = -NEAR if dot.kind == "steps" else NEAR
        y += 0.8 * away
        while any(abs(y - other_y) < NEAR and abs(x - other_x) < 3.2 * NEAR for other_x, other_y in taken):
            y += away / 2
        taken.append((x, y))
        axes.text(
            x + 0.009,
            y,
            dot.label,
            transform=axes.transAxes,
            fontsize=11,
            va="center",
            color=FRONTIER_COLORS[dot.kind],
            fontweight="bold" if dot.kind == "preset" else "normal",
            zorder=5,
            parse_math=False,
        )
