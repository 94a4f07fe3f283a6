"""Quality against time: how far each preset's images lie from those of all steps, over the seconds that it takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.names import group_name, plain_name
from kontext_fast.analysis.rows import Row
from kontext_fast.analysis.tiers import is_meaningless
from kontext_fast.records.names import PEER_PREFIX, is_peer, parse_ablation
from kontext_fast.records.schema import BASELINE, CONTROL
from kontext_fast.report.charting import Chart, not_drawn
from kontext_fast.report.model import Report
from kontext_fast.report.plots import style
from kontext_fast.report.plots.style import Canvas, Picture, Slot
from kontext_fast.report.plots.svg import tip
from kontext_fast.report.text.phrases import provenance
from kontext_fast.stats.intervals import Estimate

SECTION = "frontier"
FILE = "performance/tradeoff.png"
TITLE = "Quality against time"
_PLAIN_STEPS = re.compile(rf"{PEER_PREFIX}steps-\d+")
LEAST_POINTS = 4
LABEL_IN = 0.19
"""A label's height: labels of points that are nearer are moved."""


@dataclass(frozen=True)
class TradeoffPoint:
    preset: str
    time: Estimate
    """Seconds per call."""
    distance: float
    is_plain: bool
    """Whether it only runs fewer steps: such points are joined by a line, which every other technique has to beat."""


@dataclass(frozen=True)
class TradeoffPanel:
    title: str
    subtitle: str
    axis: str
    basis: str
    points: tuple[TradeoffPoint, ...]
    """Slow to fast."""

    @property
    def plain(self) -> tuple[TradeoffPoint, ...]:
        return tuple(point for point in self.points if point.is_plain)

    def plain_in(self, seconds: float) -> float | None:
        """The distance that plain fewer steps reach in so many seconds, None outside of what was measured."""
        line = sorted((point.time.value, point.distance) for point in self.plain)
        if len(line) < 2 or not line[0][0] <= seconds <= line[-1][0]:
            return None
        times, distances = zip(*line, strict=True)
        return float(np.interp(seconds, times, distances))


def plotted(report: Report) -> TradeoffPanel | None:
    """The group that a report leads with, of what both time and distance are known; None below `LEAST_POINTS`."""
    lead, distances = report.lead, report.distances
    if lead is None or distances is None:
        return None
    rows = [row for row in lead.group.ranked if row.preset != CONTROL and parse_ablation(row.preset) is None]
    points = tuple(
        _point(row, distances.of_presets[row.preset])
        for row in rows
        if row.time and row.preset in distances.of_presets and not is_meaningless(row)
    )
    if len(points) < LEAST_POINTS:
        return None
    source = provenance([lead.group])
    return TradeoffPanel(group_name(lead.group), source, distances.axis, distances.basis, points)


def _point(row: Row, distance: float) -> TradeoffPoint:
    assert row.time is not None
    return TradeoffPoint(row.preset, row.time.mean, distance, _PLAIN_STEPS.fullmatch(row.preset) is not None)


def draw(report: Report) -> Chart:
    panel = plotted(report)
    if panel is None:
        return not_drawn(TITLE, "", "no verification of these presets stands beside the times (kontext verify)")
    takeaway = _takeaway(panel)
    how = (
        f"Left is faster, down is nearer to the images of all steps. Up: {panel.axis}, a mean over {panel.basis}. "
        "Along: seconds per call, with 95 % intervals where three processes ran. The dashed line joins plain runs with "
        "fewer steps; a technique below it keeps more than the steps that fit into its time. Only what has both "
        "numbers is drawn."
    )
    return Chart(
        title=TITLE,
        how_to_read=how,
        takeaway=takeaway,
        alt=f"Points of {panel.axis} over seconds per call. {takeaway}",
        picture=_picture(takeaway, panel),
        source=f"{panel.subtitle}; distances: {panel.basis}",
    )


def _takeaway(panel: TradeoffPanel) -> str:
    """What the fastest of our presets reaches, and what plain steps reach in the same time or the fastest of them."""
    ours = [point for point in panel.points if not is_peer(point.preset) and point.preset != BASELINE]
    point = min(ours or panel.points, key=lambda point: point.time.value)
    in_time, name = fmt.seconds(point.time.value), plain_name(point.preset)
    plain = panel.plain_in(point.time.value)
    if plain is not None:
        return f"In {in_time} {name} is {_nearer(point.distance, plain)} to all steps than plain steps in that time."
    if panel.plain:
        fastest = min(panel.plain, key=lambda plain: plain.time.value)
        nearer = _nearer(point.distance, fastest.distance)
        other = f"{plain_name(fastest.preset)} in {fmt.seconds(fastest.time.value)}"
        return f"In {in_time} {name} is {nearer} to all steps than {other}."
    return f"{name} is {point.distance:.2g} away from all steps in {in_time}."


def _nearer(distance: float, other: float) -> str:
    """How much nearer a mean is than another; the study says nothing of the chance in their difference."""
    change = 100 * (1 - distance / other)
    return f"{abs(change):.0f} % {'nearer' if change >= 0 else 'farther'} ({fmt.NO_INTERVAL})"


def _picture(takeaway: str, panel: TradeoffPanel) -> Picture:
    return style.panels_picture(
        takeaway, [panel], lambda _, canvas: 4.6 if canvas.narrow else 4.4, _draw,
        style.who(point.preset for point in panel.points),
    )  # fmt: skip


def _draw(slot: Slot, panel: TradeoffPanel) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    narrow = slot.canvas.narrow
    axes = slot.axes(0.15 if narrow else 0.9 / slot.canvas.width_in, 0.97)
    style.clean(axes, "both", x="seconds per call, logarithmic", y="" if narrow else panel.axis)
    axes.set_xscale("log")
    ends = [end for point in panel.points for end in (point.time.value, *(point.time.interval or ()))]
    axes.set_xlim(min(ends) / 1.12, max(ends) * (1.5 if narrow else 1.12))
    highest = max(point.distance for point in panel.points)
    axes.set_ylim(-0.06 * highest, 1.14 * highest)
    ticks = [
        tick for tick in (0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 7, 10, 20, 50) if min(ends) / 1.12 <= tick <= max(ends) * 1.12
    ]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    line = sorted(panel.plain, key=lambda point: point.time.value)
    axes.plot(
        [point.time.value for point in line], [point.distance for point in line], color=style.PEER_COLOR,
        linewidth=1.4, linestyle=style.DASHED, zorder=2,
    )  # fmt: skip
    for point in panel.points:
        color = style.color_of(point.preset)
        if point.time.interval:
            axes.plot(point.time.interval, [point.distance] * 2, color=color, linewidth=1.4, alpha=0.6)
        (mark,) = axes.plot([point.time.value], [point.distance], "o", markersize=9, color=color, zorder=4)
        words = f"{plain_name(point.preset)}: {fmt.seconds_with_interval(point.time)}, distance {point.distance:.2g}"
        tip(mark, f"{words}; {fmt.n_of(point.time)}", point.preset)
    _label(axes, panel.points, slot.canvas)


def _label(axes: Any, points: Sequence[TradeoffPoint], canvas: Canvas) -> None:
    """Names beside the points, ours first; moved up until they cover no other name."""
    width_in = style.width_in(axes)
    height_in = axes.get_position().height * axes.figure.get_figheight()
    to_axes = axes.transData + axes.transAxes.inverted()
    taken: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda point: (is_peer(point.preset), point.time.value)):
        x, y = to_axes.transform((point.time.value, point.distance))
        name = plain_name(point.preset)
        left, across, at = x * width_in + 0.09, style.words_in(name, 10.5), y * height_in + 0.14
        if left + across > width_in:
            left = x * width_in - 0.09 - across
        while any(abs(at - other) < LABEL_IN and left < end and start < left + across for start, end, other in taken):
            at += 0.06
        taken.append((left, left + across, at))
        axes.text(
            left / width_in, at / height_in, name, transform=axes.transAxes, fontsize=10.5, va="center", zorder=5,
            color=style.PRESET_COLOR if not is_peer(point.preset) and point.preset != BASELINE else style.MUTED,
            fontweight="normal" if is_peer(point.preset) or point.preset == BASELINE else "bold", parse_math=False,
        )  # fmt: skip
