"""Quality against time: every preset, and baseline with plain fewer steps, which a preset has to beat."""

from __future__ import annotations

from kontext_fast.metrics.base import discover
from kontext_fast.report.charting import Chart
from kontext_fast.report.plots.dots import FrontierDot, FrontierPanel, frontier_picture
from kontext_fast.report.text.quality import frontier_finding, without_time
from kontext_fast.report.verification import VerificationReport
from kontext_fast.verify.frontier import Frontier, FrontierPoint

SECTION = "frontier"
FILE = "quality/frontier.png"
TITLE = "Quality against time: presets, and plain fewer steps"


def plotted(report: VerificationReport) -> tuple[FrontierPanel, ...]:
    """One panel per primary metric that sees; empty without a frontier, and where nothing was timed."""
    if report.frontier is None:
        return ()
    panels = []
    for metric in report.frontier.metrics:
        kind = discover()[metric]
        scale, unit = (100.0, "points") if kind.bounded else (1.0, "units of the score")
        dots = tuple(dot for point in report.frontier.points if (dot := _dot(point, metric, scale)) is not None)
        if len(dots) > 1:
            margin = scale * report.analysis.margins.primary[metric]
            panels.append(FrontierPanel(kind.title, f"change from baseline, {unit}", dots, margin))
    return tuple(panels)


def draw(report: VerificationReport) -> Chart:
    panels = plotted(report)
    takeaway = frontier_finding(report.frontier) if report.frontier and panels else _nothing(report.frontier)
    return Chart(
        title=TITLE,
        how_to_read=(
            "Up and left is better. Blue are presets, orange is baseline with fewer steps: a preset that lies above "
            "the dashed line keeps more than the steps that fit into its time. Vertical bars are one-sided bounds of "
            "the mean change, horizontal ones reach from the fastest to the slowest edit. In the green band a loss is "
            "within the margin. Times are of single edits in the verification's own process and support no claim "
            "about speed; that takes kontext bench."
        ),
        takeaway=takeaway,
        alt=f"Points of quality against time. {takeaway}",
        picture=frontier_picture(takeaway, panels) if panels else None,
    )


def _nothing(frontier: Frontier | None) -> str:
    if frontier is None:
        return "No frontier was asked for: run kontext verify --frontier."
    if not frontier.metrics:
        return "No primary metric that sees was measured, so there is no quality to draw."
    return f"Nothing but baseline was timed. {without_time(frontier)}"


def _dot(point: FrontierPoint, metric: str, scale: float) -> FrontierDot | None:
    if point.edit_s is None or point.fastest_s is None or point.slowest_s is None or metric not in point.changes:
        return None
    change = point.changes[metric]
    return FrontierDot(
        label=point.name,
        kind=point.kind,
        time_s=point.edit_s,
        time_range_s=(point.fastest_s, point.slowest_s),
        change=scale * change.mean,
        bounds=(scale * change.lower, scale * change.upper),
    )
