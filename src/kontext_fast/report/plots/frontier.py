"""Draws quality against time, one panel per metric; what is drawn was computed elsewhere."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["baseline", "preset", "steps"]

COLORS: dict[Kind, str] = {"baseline": "#5f656e", "preset": "#0072b2", "steps": "#d55e00"}
MARKERS: dict[Kind, str] = {"baseline": "D", "preset": "o", "steps": "s"}
MARGIN, INK, MUTED, GRID = "#009e73", "#1c1d1f", "#5f656e", "#e4e6e9"
WIDTH_IN, PANEL_IN, DPI = 12.0, 5.4, 150
NEAR = 0.045
"""Labels whose points are nearer than this share of the panel would cover each other."""


@dataclass(frozen=True)
class Dot:
    label: str
    kind: Kind
    time_s: float
    time_range_s: tuple[float, float]
    """Fastest and slowest single edit."""
    change: float
    bounds: tuple[float, float]
    """One-sided bounds of the mean change."""


@dataclass(frozen=True)
class Panel:
    title: str
    axis: str
    dots: tuple[Dot, ...]
    scale: float
    """Changes are drawn times this."""
    margin: float
    """A loss up to this counts as none, before scaling."""


def picture(panels: Sequence[Panel]) -> bytes:
    """The PNG; the figure is made without pyplot, so that no global state is touched."""
    from matplotlib.figure import Figure

    height = PANEL_IN * len(panels)
    figure = Figure(figsize=(WIDTH_IN, height), dpi=DPI, facecolor="white")
    for index, panel in enumerate(panels):
        bottom = height - (index + 1) * PANEL_IN
        figure.text(
            0.015, (bottom + PANEL_IN - 0.42) / height, panel.title, fontsize=15, fontweight="bold", parse_math=False
        )
        axes = figure.add_axes((0.085, (bottom + 0.8) / height, 0.89, (PANEL_IN - 1.45) / height))
        _draw(axes, panel)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _draw(axes: Axes, panel: Panel) -> None:
    axes.axhspan(-panel.margin * panel.scale, 0, color=MARGIN, alpha=0.14, linewidth=0, zorder=0)
    axes.axhline(0, color=INK, linewidth=1, zorder=1)
    line = sorted((dot for dot in panel.dots if dot.kind != "preset"), key=lambda dot: dot.time_s)
    axes.plot(
        [dot.time_s for dot in line],
        [dot.change * panel.scale for dot in line],
        color=COLORS["steps"],
        linewidth=1.2,
        linestyle=(0, (4, 3)),
        zorder=2,
    )
    for dot in panel.dots:
        color, change = COLORS[dot.kind], dot.change * panel.scale
        axes.plot(
            [dot.time_s] * 2, [bound * panel.scale for bound in dot.bounds], color=color, linewidth=1.4, alpha=0.6
        )
        axes.plot(dot.time_range_s, [change] * 2, color=color, linewidth=1.4, alpha=0.6)
        axes.plot(
            [dot.time_s], [change], MARKERS[dot.kind], markersize=9, color=color, markeredgecolor="white", zorder=4
        )
    _set_axes(axes, panel)
    _label(axes, panel)


def _set_axes(axes: Axes, panel: Panel) -> None:
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
    bounds = [bound * panel.scale for dot in panel.dots for bound in dot.bounds] + [-panel.margin * panel.scale]
    reach = max(bounds) - min(bounds) or 1.0
    axes.set_ylim(min(bounds) - 0.08 * reach, max(*bounds, 0) + 0.16 * reach)
    axes.set_xlabel("time of one edit, logarithmic; left is faster", fontsize=11, color=MUTED)
    axes.set_ylabel(panel.axis, fontsize=11, color=MUTED)
    axes.tick_params(labelsize=10.5, colors=MUTED, length=0)
    axes.tick_params(which="minor", length=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _label(axes: Axes, panel: Panel) -> None:
    """Names beside the points, those of steps below the line through them; moved until they cover no other name."""
    taken: list[tuple[float, float]] = []
    to_axes = axes.transData + axes.transAxes.inverted()
    order: dict[Kind, int] = {"preset": 0, "baseline": 1, "steps": 2}
    for dot in sorted(panel.dots, key=lambda dot: (order[dot.kind], dot.time_s)):
        x, y = to_axes.transform((dot.time_s, dot.change * panel.scale))
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
            color=COLORS[dot.kind],
            fontweight="bold" if dot.kind == "preset" else "normal",
            zorder=5,
            parse_math=False,
        )
