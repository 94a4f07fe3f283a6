"""Times on the left, factors against baseline on the right, one pair of panels per workload."""

from __future__ import annotations

from pathlib import Path

from kontext_fast.records.atomic import write_atomically
from kontext_fast.records.schema import ResultFile
from kontext_fast.report import format as write
from kontext_fast.report.charting import Chart
from kontext_fast.report.control import smallest_claim
from kontext_fast.report.groups import Group, groups
from kontext_fast.report.headline import Row, headline
from kontext_fast.report.notes import group_name, speed_finding
from kontext_fast.report.speed_picture import Bar, Panel, picture

FILE = Path("performance") / "speedup_comparison.png"
TITLE = "Time per call, and how many times as fast as baseline"


def plotted(result: ResultFile) -> tuple[Panel, ...]:
    """The data of the picture: one panel per group in which something was measured."""
    found = groups(result)
    return tuple(_panel(group, smallest_claim(group, found)) for group in found if group.runs)


def draw(result: ResultFile, folder: Path) -> Chart:
    """Write the picture below `folder`; without any time an earlier picture is removed and none is drawn."""
    panels = plotted(result)
    path = folder / FILE
    if panels:
        write_atomically(path, picture(panels))
    else:
        path.unlink(missing_ok=True)
    return Chart(
        path=path if panels else None,
        title=TITLE,
        how_to_read=(
            "Left: the mean wall time of one call (image in, image out), shorter is better; dots are single processes. "
            "Right: baseline's time over the preset's, paired by round; right of the line at 1 is faster, "
            "on a logarithmic scale. "
            "Whiskers are 95 % intervals over processes; a preset is faster only where they stay right of 1."
        ),
        takeaway=" ".join(panel.finding if len(panels) == 1 else f"{panel.title}: {panel.finding}" for panel in panels),
        alt=" ".join(_spoken(panel) for panel in panels),
    )


def _panel(group: Group, limit: float | None) -> Panel:
    rows = headline(group)
    dates = sorted({write.date(run.record.created_at) for run in group.runs})
    checkpoint = group.checkpoint.name if group.checkpoint else "unknown checkpoint"
    calls = sum(len(run.samples) for run in group.runs)
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    subtitle = (
        f"{checkpoint} on {group.machine or 'an unnamed machine'}, {when}, "
        f"{write.count(len(group.runs), 'process', 'processes')}, {write.count(calls, 'measured call')}"
    )
    return Panel(group_name(group), subtitle, tuple(map(_bar, rows)), speed_finding(rows, limit))


def _bar(row: Row) -> Bar:
    return Bar(
        preset=row.preset,
        time=row.time.mean if row.time else None,
        processes=row.time.values if row.time else (),
        factor=row.factor,
        note=row.factor_note if row.time else f"{row.status}: {row.reason}",
    )


def _spoken(panel: Panel) -> str:
    parts = []
    for bar in panel.bars:
        if bar.time is None:
            parts.append(f"{bar.preset} {bar.note}")
        else:
            factor = f", {write.factor(bar.factor)} as fast as baseline" if bar.factor else ""
            parts.append(f"{bar.preset} {write.seconds_estimate(bar.time)}{factor}")
    return f"Bars of time per call and points of factors for {panel.title}: {'; '.join(parts)}."
