"""How the time of an edit grows with the tokens that really ran: a page to explore, and a still picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.groups import by_machine
from kontext_fast.records.schema import CONTROL
from kontext_fast.report import templates
from kontext_fast.report.charting import Chart
from kontext_fast.report.model import Report
from kontext_fast.report.plots import style
from kontext_fast.report.text.phrases import provenance
from kontext_fast.stats.intervals import Estimate

SECTION = "sizes"
FILE = "performance/resolution_scaling.png"
TITLE = "Time per call over the tokens really run"
HEIGHT_IN = 6.4


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
    for of in by_machine(filter(_is_shown, report.analysis)):
        by_steps: dict[int, list[AnalyzedGroup]] = {}
        for group in of:
            assert group.workload is not None
            by_steps.setdefault(group.workload.steps, []).append(group)
        steps, chosen = max(by_steps.items(), key=lambda entry: len(entry[1]))
        if len(chosen) > 1:
            panels.append(_panel(steps, chosen))
    return tuple(panels)


def draw(report: Report) -> Chart:
    panels = plotted(report)
    takeaway = " ".join(_takeaway(panel) for panel in panels)
    takeaway = takeaway or "Not drawn: edits were not measured at two sizes with the same steps (suite full)."
    return Chart(
        title=TITLE,
        how_to_read=(
            "Each point is one size at the same step count, placed by the tokens that a step works on: text, image and "
            "reference. Whiskers are 95 % intervals over processes. A straight line through zero would be time in "
            "proportion to tokens; attention makes it steeper. resolution_scaling.html beside the picture shows every "
            "number and lets presets be switched off."
        ),
        takeaway=takeaway,
        alt=f"Lines of seconds per call over tokens. {takeaway}",
        png=style.draw_panels(panels, lambda _: HEIGHT_IN, _draw_panel) if panels else None,
        html=_page(panels) if panels else None,
    )


def _is_shown(group: AnalyzedGroup) -> bool:
    workload = group.workload
    return workload is not None and workload.mode == "edit" and workload.batch == 1 and group.compile_cache == "user"


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
    """How much more the largest size costs than the smallest, for the first preset that has both."""
    line = max(panel.lines, key=lambda line: len(line.points))
    small, large = line.points[0], line.points[-1]
    tokens, time = large.tokens / small.tokens, large.time.value / small.time.value
    times = f"{fmt.seconds_estimate(small.time)} to {fmt.seconds_estimate(large.time)}"
    return (
        f"{panel.title}: from {small.size} to {large.size} {line.preset} works on {tokens:.1f} times the tokens and "
        f"takes {time:.1f} times as long ({times})."
    )


def _draw_panel(figure: Any, panel: ScalingPanel, top_in: float, height_in: float) -> None:
    axes = style.panel_axes(figure, top_in, height_in, left=0.07, right=0.86)
    style.clean(axes, "both", x="tokens of one transformer call", y="seconds per call")
    for line, color in zip(panel.lines, cycle(style.COLORS), strict=False):
        tokens = [point.tokens for point in line.points]
        axes.plot(tokens, [point.time.value for point in line.points], "o-", color=color, linewidth=1.8, markersize=6)
        for point in line.points:
            if point.time.interval:
                axes.plot([point.tokens] * 2, point.time.interval, color=style.INK, linewidth=1.4)
        last = line.points[-1]
        style.row_words(axes, last.tokens, last.time.value, f"{line.preset} (n={last.time.n})", color)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)


def _page(panels: Sequence[ScalingPanel]) -> str:
    return templates.render(
        "resolution_scaling.html.j2",
        title=TITLE,
        panels=panels,
        data=[asdict(panel) for panel in panels],
        colors=style.COLORS,
    )
