"""Draws what a verification measured: rows of one dot per output, and presets as dots of quality against time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kontext_fast.report.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEAD_IN = 0.75
"""Of a panel without subtitle and legend."""

DotKind = Literal["baseline", "preset", "floor", "control"]

DOT_COLORS: dict[DotKind, str] = {
    "baseline": style.BASELINE_COLOR,
    "preset": style.PRESET_COLOR,
    "floor": style.GREEN,
    "control": style.VERMILION,
}
DOT_ROW_IN = 0.36
MOST_DOTS = 600


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
    margin: float | None = None
    """A loss up to this counts as none; it is drawn left of zero."""
    subtitle: str = ""


def dot_picture(panels: Sequence[DotPanel]) -> bytes:
    """PNG."""
    return style.draw_panels(
        panels, lambda panel: HEAD_IN + style.FOOT_IN + DOT_ROW_IN * len(panel.rows), _draw_dot_panel
    )


def _draw_dot_panel(figure: Any, panel: DotPanel, top_in: float, height_in: float) -> None:
    axes = style.panel_axes(figure, top_in, height_in, left=0.21, right=0.98, head_in=HEAD_IN)
    style.rows(axes, len(panel.rows), panel.axis)
    floor = min((value for row in panel.rows for value in row.values if value > 0), default=1e-6) / 3
    if panel.log:
        axes.set_xscale("log")
        axes.set_xlim(floor / 1.5, 3 * max(max(row.values, default=0) for row in panel.rows) or 1)
    for y, row in enumerate(panel.rows):
        style.row_name(axes, y, row.label, style.INK if row.kind in ("baseline", "preset") else style.MUTED)
        _draw_dots(axes, y, row, np.maximum(row.values, floor) if panel.log else np.asarray(row.values))
    if panel.margin is not None:
        axes.axvspan(-panel.margin, 0, color=style.GREEN, alpha=0.14, linewidth=0, zorder=0)
        axes.axvline(0, color=style.INK, linewidth=1)


def _draw_dots(axes: Axes, y: int, row: DotRow, values: np.ndarray) -> None:
    if len(values) == 0:
        return
    rng, color = np.random.default_rng(y), DOT_COLORS[row.kind]
    shown = values if len(values) <= MOST_DOTS else rng.choice(values, MOST_DOTS, replace=False)
    jitter = rng.uniform(-0.24, 0.24, len(shown))
    axes.plot(shown, y + jitter, "o", markersize=3.2, color=color, alpha=0.4, markeredgewidth=0)
    style.whisker(axes, y, row.bounds)
    middle = float(np.mean(values)) if row.bounds is not None else float(np.median(values))
    axes.plot([middle], [y], "D", markersize=6, color=color, markeredgecolor="white", markeredgewidth=0.9, zorder=3)


FrontierKind = Literal["baseline", "preset", "steps"]

FRONTIER_COLORS: dict[FrontierKind, str] = {
    "baseline": style.MUTED,
    "preset": style.PRESET_COLOR,
    "steps": style.VERMILION,
}
MARKERS: dict[FrontierKind, str] = {"baseline": "D", "preset": "o", "steps": "s"}
FRONTIER_IN = 5.4
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


def frontier_picture(panels: Sequence[FrontierPanel]) -> bytes:
    """PNG."""
    return style.draw_panels(panels, lambda _: FRONTIER_IN, _draw_frontier)


def _draw_frontier(figure: Any, panel: FrontierPanel, top_in: float, height_in: float) -> None:
    axes = style.panel_axes(figure, top_in, height_in, left=0.085, right=0.975, head_in=HEAD_IN)
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
        axes.plot(
            [dot.time_s], [dot.change], MARKERS[dot.kind], markersize=9, color=color, markeredgecolor="white", zorder=4
        )
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
