"""Quality against time: every preset, and baseline with plain fewer steps, which a preset has to beat."""

from __future__ import annotations

from pathlib import Path

from kontext_fast.metrics.base import discover
from kontext_fast.records.atomic import write_atomically
from kontext_fast.records.schema import ResultFile
from kontext_fast.report.charting import Chart
from kontext_fast.report.plots.frontier import Dot, Panel, picture
from kontext_fast.report.text.frontier import finding, without_time
from kontext_fast.verify.analysis import analyze
from kontext_fast.verify.frontier import Frontier, Point, frontier

SECTION = "quality"
FILE = Path("quality") / "frontier.png"
TITLE = "Quality against time: presets, and plain fewer steps"


def plotted(result: ResultFile) -> tuple[Panel, ...]:
    """One panel per primary metric that sees; empty without a frontier, and where nothing was timed."""
    found = _frontier(result)
    if found is None:
        return ()
    margins = analyze(result).margins
    panels = []
    for metric in found.metrics:
        dots = tuple(dot for point in found.points if (dot := _dot(point, metric)) is not None)
        if len(dots) < 2:
            continue
        kind = discover()[metric]
        scale, unit = (100.0, "points") if kind.bounded else (1.0, "units of the score")
        axis = f"change from baseline, {unit}"
        panels.append(Panel(kind.title, axis, dots, scale, margins.primary[metric]))
    return tuple(panels)


def draw(result: ResultFile, folder: Path) -> Chart:
    """Write the picture below `folder`; without a frontier an earlier picture is removed and none is drawn."""
    panels, found = plotted(result), _frontier(result)
    path = folder / FILE
    if panels:
        write_atomically(path, picture(panels))
    else:
        path.unlink(missing_ok=True)
    return Chart(
        path=path if panels else None,
        title=TITLE,
        how_to_read=(
            "Up and left is better. Blue are presets, orange is baseline with fewer steps: a preset that lies above "
            "the dashed line keeps more than the steps that fit into its time. Vertical bars are one-sided bounds of "
            "the mean change, horizontal ones reach from the fastest to the slowest edit. In the green band a loss is "
            "within the margin. Times are of single edits in the verification's own process and support no claim "
            "about speed; that takes kontext bench."
        ),
        takeaway=finding(found) if found and panels else _nothing(found),
        alt="; ".join(f"{panel.title}: {', '.join(dot.label for dot in panel.dots)}" for panel in panels),
    )


def _frontier(result: ResultFile) -> Frontier | None:
    return None if result.verification is None else frontier(result, analyze(result))


def _nothing(found: Frontier | None) -> str:
    if found is None:
        return "No frontier was asked for: run kontext verify --frontier."
    if not found.metrics:
        return "No primary metric that sees was measured, so there is no quality to draw."
    return f"Nothing but baseline was timed. {without_time(found)}"


def _dot(point: Point, metric: str) -> Dot | None:
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
