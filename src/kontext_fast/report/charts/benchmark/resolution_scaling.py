"""How the time of an edit grows with the tokens that really ran: a page to explore, and a still picture of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.groups import by_machine
from kontext_fast.records.schema import BASELINE, CONTROL
from kontext_fast.report import templates
from kontext_fast.report.charting import Chart, not_drawn
from kontext_fast.report.model import Report
from kontext_fast.report.plots import style
from kontext_fast.report.plots.style import Slot
from kontext_fast.report.plots.svg import tip
from kontext_fast.report.text.phrases import provenance
from kontext_fast.stats.intervals import Estimate

SECTION = "sizes"
FILE = "performance/resolution_scaling.png"
TITLE = "Time per call over the size of the image"
HOW = (
    "Each point is one size at the same step count, placed by the tokens that a step works on: text, image and "
    "reference. Whiskers are 95 % intervals over processes. A straight line through zero would be time in proportion "
    "to tokens; attention makes it steeper."
)
HEIGHT_IN = 4.6
SHADES = {style.PRESET_COLOR: (style.BLUE, style.SKY, style.GREEN, style.PURPLE)}
"""Of several lines with the same meaning."""


@dataclass(frozen=True)
class ScalingPoint:
    size: str
    """Width x height of the output, in pixels."""
    tokens: int
    """Of text, image and reference together: what one step of the transformer works on."""
    time: Estimate
    """Seconds per call."""


@dataclass(frozen=True)
class ScalingLine:
    preset: str
    points: tuple[ScalingPoint, ...]
    """By tokens."""


@dataclass(frozen=True)
class ScalingPanel:
    title: str
    subtitle: str
    lines: tuple[ScalingLine, ...]


def plotted(report: Report) -> tuple[ScalingPanel, ...]:
    """One panel per checkpoint and machine: the step count with the most sizes, two at least; the first of equals."""
    panels = []
    for groups in by_machine(group for group in report.analysis if group.is_of_single_edits):
        by_steps: dict[int, list[AnalyzedGroup]] = {}
        for group in groups:
            assert group.workload is not None
            by_steps.setdefault(group.workload.steps, []).append(group)
        steps, chosen = max(by_steps.items(), key=lambda entry: len(entry[1]))
        if len(chosen) > 1:
            panels.append(_panel(steps, chosen))
    return tuple(panels)


def draw(report: Report) -> Chart:
    panels = plotted(report)
    if not panels:
        return not_drawn(TITLE, HOW, "edits were not measured at two sizes with the same steps (suite full)")
    takeaway = " ".join(map(_takeaway, panels))
    return Chart(
        title=TITLE,
        how_to_read=HOW,
        takeaway=takeaway,
        alt=f"Lines of seconds per call over sizes. {takeaway}",
        picture=style.panels_picture(takeaway, panels, lambda *_: HEIGHT_IN, _draw_panel),
        html=_page(takeaway, panels),
        source="; ".join(panel.subtitle for panel in panels),
    )


def _panel(steps: int, groups: Sequence[AnalyzedGroup]) -> ScalingPanel:
    lines: dict[str, list[ScalingPoint]] = {}
    for group in groups:
        workload = group.workload
        assert workload is not None
        tokens = workload.text_tokens + workload.image_tokens + workload.reference_tokens
        for row in group.rows:
            if row.preset != CONTROL and row.time:
                point = ScalingPoint(f"{workload.width}x{workload.height}", tokens, row.time.mean)
                lines.setdefault(row.preset, []).append(point)
    # A point alone says nothing of scaling.
    lines = {name: points for name, points in lines.items() if len(points) > 1} or lines
    by_tokens = (
        ScalingLine(name, tuple(sorted(points, key=lambda point: point.tokens))) for name, points in lines.items()
    )
    return ScalingPanel(
        title=f"Edits, {fmt.count(steps, 'step')}, one image per call",
        subtitle=provenance(groups),
        lines=tuple(by_tokens),
    )


def _takeaway(panel: ScalingPanel) -> str:
    """How many times as fast the presets are over all sizes, and how much more the largest size costs."""
    baseline = next((line for line in panel.lines if line.preset == BASELINE), None)
    others = [line for line in panel.lines if line is not baseline]
    spans = [words for line in others if baseline and (words := _span(baseline, line))]
    if spans:
        return f"{panel.title}: {'; '.join(spans)}."
    line = max(panel.lines, key=lambda line: len(line.points))
    small, large = line.points[0], line.points[-1]
    tokens, time = large.tokens / small.tokens, large.time.value / small.time.value
    return (
        f"{panel.title}: from {small.size} to {large.size} {line.preset} works on {tokens:.1f} times the tokens and "
        f"takes {time:.1f} times as long."
    )


def _span(baseline: ScalingLine, line: ScalingLine) -> str | None:
    """The quotients of the drawn means, which are no factors paired by round: a size has one process or a few."""
    slow = {point.size: point.time.value for point in baseline.points}
    quotients = [slow[point.size] / point.time.value for point in line.points if point.size in slow]
    if len(quotients) < 2:
        return None
    low, high = (f"{value:.1f}" for value in (min(quotients), max(quotients)))
    reach = low if low == high else f"{low} to {high}"
    return f"{line.preset} is {reach} times as fast as baseline at {len(quotients)} sizes"


def colors_of(lines: Sequence[ScalingLine]) -> list[str]:
    """One per line: what it means, in another shade where several lines mean the same."""
    used: dict[str, int] = {}
    chosen = []
    for line in lines:
        color = style.color_of(line.preset)
        shades = SHADES.get(color, (color,))
        chosen.append(shades[used.get(color, 0) % len(shades)])
        used[color] = used.get(color, 0) + 1
    return chosen


def _draw_panel(slot: Slot, panel: ScalingPanel) -> None:
    narrow = slot.canvas.narrow
    axes = slot.axes(0.11 if narrow else 0.06, 0.92 if narrow else 0.9, foot_in=0.95)
    style.clean(axes, "both", y="" if narrow else "seconds per call")
    highest = 1.12 * max(point.time.value for line in panel.lines for point in line.points)
    height = 72 * axes.get_position().height * axes.figure.get_figheight()
    downs = downs_of_names(
        [line.points[-1].time.value / highest * height for line in panel.lines], 26 if narrow else 13
    )
    for line, color, down in zip(panel.lines, colors_of(panel.lines), downs, strict=True):
        tokens = [point.tokens for point in line.points]
        axes.plot(tokens, [point.time.value for point in line.points], "-", color=color, linewidth=2)
        for point in line.points:
            if point.time.interval:
                axes.plot([point.tokens] * 2, point.time.interval, color=style.INK, linewidth=1.4)
            (dot,) = axes.plot([point.tokens], [point.time.value], "o", color=color, markersize=7)
            words = f"{line.preset} at {point.size}: {fmt.seconds_with_interval(point.time)}; {fmt.n_of(point.time)}"
            tip(dot, words, line.preset)
        last = line.points[-1]
        if narrow:
            axes.annotate(
                line.preset, (last.tokens, last.time.value), xytext=(-4, 9 - down), textcoords="offset points",
                ha="right", fontsize=11, color=color, parse_math=False,
            )  # fmt: skip
        else:
            style.row_words(axes, last.tokens, last.time.value, line.preset, color, down=down)
    axes.set_xlim(0, max(point.tokens for line in panel.lines for point in line.points) * 1.03)
    axes.set_ylim(0, highest)
    _name_sizes(axes, panel, narrow)


def downs_of_names(heights: Sequence[float], apart: float) -> list[float]:
    """How far the names at `heights` go down, in points, so that they stand `apart` at least, in their order."""
    downs, above = [0.0] * len(heights), math.inf
    for number in sorted(range(len(heights)), key=lambda number: -heights[number]):
        downs[number] = max(0.0, heights[number] + apart - above)
        above = heights[number] - downs[number]
    return downs


def _name_sizes(axes: Any, panel: ScalingPanel, narrow: bool) -> None:
    """The sizes below their tokens, every second one a line lower, so that neighbours do not cover each other."""
    sizes = {point.tokens: point.size for line in panel.lines for point in line.points}
    ticks = sorted(sizes)
    labels = [("\n" if number % 2 else "") + sizes[tokens] for number, tokens in enumerate(ticks)]
    axes.set_xticks(ticks, labels=labels)
    axes.set_xlabel(
        f"size; its place is the tokens of a step, {ticks[0]:,} to {ticks[-1]:,}", fontsize=10 if narrow else 11
    )


def _page(takeaway: str, panels: Sequence[ScalingPanel]) -> str:
    return templates.render(
        "resolution_scaling.html.j2",
        title=TITLE,
        takeaway=takeaway,
        panels=panels,
        data=[asdict(panel) for panel in panels],
        colors=[[style.VARIABLES[color] for color in colors_of(panel.lines)] for panel in panels],
        light={name: color for color, name in style.VARIABLES.items()},
        dark={name: style.DARK[color] for color, name in style.VARIABLES.items()},
    )
