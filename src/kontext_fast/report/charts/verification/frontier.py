"""Quality against time: every preset, and baseline with plain fewer steps, which a preset has to beat."""

from __future__ import annotations

from kontext_fast.metrics.base import discover
from kontext_fast.report.charting import Chart
from kontext_fast.report.plots.frontier import Dot, Panel, picture
from kontext_fast.report.text.quality import frontier_finding, without_time
from kontext_fast.report.verification import VerificationReport
from kontext_fast.verify.frontier import Frontier, FrontierPoint

SECTION = "frontier"
FILE = "quality/frontier.png"
TITLE = "Quality against time: presets, and plain fewer steps"


def plotted(report: VerificationReport) -> tuple[Panel, ...]:
    """One panel per primary metric that sees; empty without a frontier, and where nothing was timed."""
    if report.frontier is None:
        return ()
    panels = []
    for metric in report.frontier.metrics:
        dots = tuple(dot for point in report.frontier.points if (dot := _dot(point, metric)) is not None)
        if len(dots) < 2:
            continue
        kind = discover()[metric]
        scale, unit = (100.0, "points") if kind.bounded else (1.0, "units of the score")
        axis = f"change from baseline, {unit}"
        panels.append(Panel(kind.title, axis, dots, scale, report.analysis.margins.primary[metric]))
    return tuple(panels)


def draw(report: VerificationReport) -> Chart:
    panels = plotted(report)
    return Chart(
        title=TITLE,
        how_to_read=(
            "Up and left is better. Blue are presets, orange is baseline with fewer steps: a preset that lies above "
            "the dashed line keeps more than the steps that fit into its time. Vertical bars are one-sided bounds of "
            "the mean change, horizontal ones reach from the fastest to the slowest edit. In the green band a loss is "
            "within the margin. Times are of single edits in the verification's own process and support no claim "
            "about speed; that takes kontext bench."
        ),
        takeaway=frontier_finding(report.frontier) if report.frontier and panels else _nothing(report.frontier),
        alt="; ".join(f"{panel.title}: {', '.join(dot.label for dot in panel.dots)}" for panel in panels),
        png=picture(panels) if panels else None,
    )


def _nothing(frontier: Frontier | None) -> str:
    if frontier is None:
        return "No frontier was asked for: run kontext verify --frontier."
    if not frontier.metrics:
        return "No primary metric that sees was measured, so there is no quality to draw."
    return f"Nothing but baseline was timed. {without_time(frontier)}"


def _dot(point: FrontierPoint, metric: str) -> Dot | None:
    if point.edit_s is None or point.fastest_s is None or point.slowest_s is None or metric not in point.changes:
        return None
    change = point.changes[metric]
    return Dot(
        point.name,
        point.kind,
        point.edit_s,
        (point.fastest_s, point.slowest_s),
        change.mean,
        (change.lower, change.upper),
    )
