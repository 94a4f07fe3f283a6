"""Draws values of outputs as rows of dots, one panel per metric; what is drawn was computed elsewhere."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["baseline", "preset", "floor", "control"]

# Okabe and Ito's palette, which people with any common colour blindness can tell apart.
COLORS: dict[Kind, str] = {"baseline": "#8a8f98", "preset": "#0072b2", "floor": "#009e73", "control": "#d55e00"}
INK, MUTED, GRID = "#1c1d1f", "#5f656e", "#e4e6e9"
WIDTH_IN, ROW_IN, HEAD_IN, FOOT_IN, DPI = 12.0, 0.36, 0.75, 0.75, 150
MOST_DOTS = 600


@dataclass(frozen=True)
class Row:
    label: str
    kind: Kind
    values: tuple[float, ...]
    bounds: tuple[float, float] | None = None
    """One-sided bounds of the mean."""


@dataclass(frozen=True)
class Panel:
    title: str
    axis: str
    rows: tuple[Row, ...]
    log: bool = False
    """Distances: zeros are drawn at the left edge."""
    margin: float | None = None
    """A loss up to this counts as none; it is drawn left of zero."""


def picture(panels: tuple[Panel, ...]) -> bytes:
    """The PNG; the figure is made without pyplot, so that no global state is touched."""
    from matplotlib.figure import Figure

    heights = [HEAD_IN + FOOT_IN + ROW_IN * len(panel.rows) for panel in panels]
    total = sum(heights)
    figure = Figure(figsize=(WIDTH_IN, total), dpi=DPI, facecolor="white")
    top = total
    for panel, height in zip(panels, heights, strict=True):
        figure.text(0.015, (top - 0.42) / total, panel.title, fontsize=15, fontweight="bold", parse_math=False)
        axes = figure.add_axes(
            (0.21, (top - height + FOOT_IN) / total, 0.77, (height - HEAD_IN - FOOT_IN) / total), facecolor="none"
        )
        _draw(axes, panel)
        top -= height
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _draw(axes: Axes, panel: Panel) -> None:
    axes.set_ylim(len(panel.rows) - 0.4, -0.6)
    axes.set_yticks([])
    axes.set_xlabel(panel.axis, fontsize=11, color=MUTED)
    axes.tick_params(axis="x", labelsize=10.5, colors=MUTED, length=0)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    floor = _smallest(panel) / 3 if panel.log else 0.0
    if panel.log:
        axes.set_xscale("log")
        axes.set_xlim(floor / 1.5, 3 * max(max(row.values, default=0) for row in panel.rows) or 1)
    for y, row in enumerate(panel.rows):
        values = np.maximum(row.values, floor) if panel.log else np.asarray(row.values)
        _draw_row(axes, y, row, values)
    if panel.margin is not None:
        axes.axvspan(-panel.margin, 0, color=COLORS["floor"], alpha=0.14, linewidth=0, zorder=0)
        axes.axvline(0, color=INK, linewidth=1)


def _draw_row(axes: Axes, y: int, row: Row, values: np.ndarray) -> None:
    color = COLORS[row.kind]
    axes.text(
        -0.012,
        y,
        row.label,
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="center",
        fontsize=11.5,
        color=INK if row.kind in ("baseline", "preset") else MUTED,
        parse_math=False,
    )
    if len(values) == 0:
        return
    rng = np.random.default_rng(y)
    shown = values if len(values) <= MOST_DOTS else rng.choice(values, MOST_DOTS, replace=False)
    jitter = rng.uniform(-0.24, 0.24, len(shown))
    axes.plot(shown, y + jitter, "o", markersize=3.2, color=color, alpha=0.4, markeredgewidth=0)
    if row.bounds is not None:
        axes.plot(row.bounds, [y, y], color=INK, linewidth=2.2, solid_capstyle="butt")
        axes.plot(row.bounds, [y, y], "|", color=INK, markersize=9, markeredgewidth=1.6)
    middle = float(np.mean(values)) if row.bounds is not None else float(np.median(values))
    axes.plot([middle], [y], "D", markersize=6, color=color, markeredgecolor="white", markeredgewidth=0.9, zorder=3)


def _smallest(panel: Panel) -> float:
    return min((value for row in panel.rows for value in row.values if value > 0), default=1e-6)
