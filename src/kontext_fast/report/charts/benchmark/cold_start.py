"""What a process pays once: loading, applying the preset and the first call, with a cold and a warm compile cache."""

from __future__ import annotations

from collections.abc import Sequence

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.groups import by_machine
from kontext_fast.analysis.names import workload_name
from kontext_fast.records.schema import CONTROL, CompileCache, Record
from kontext_fast.report.charting import Chart
from kontext_fast.report.model import Report
from kontext_fast.report.plots import style
from kontext_fast.report.plots.bars import Part, StackedPanel, StackedRow, stacked_picture
from kontext_fast.report.text.phrases import provenance
from kontext_fast.stats.intervals import Estimate, mean_estimate

SECTION = "cold"
FILE = "performance/cold_start.png"
TITLE = "Start of a process: load, apply the preset, first call"
LOAD, APPLY, FIRST = "load", "apply", "first call"
COLORS = {LOAD: style.BLUE, APPLY: style.GREEN, FIRST: style.VERMILION}
_CACHES: dict[CompileCache, str] = {"cold": ", cold cache", "warm": ", warm cache", "user": ""}


def plotted(report: Report) -> tuple[StackedPanel, ...]:
    """One panel per checkpoint and machine: a row per preset and compile cache, seconds as means over processes."""
    panels = map(_panel, by_machine(report.analysis))
    return tuple(panel for panel in panels if panel.rows)


def draw(report: Report) -> Chart:
    panels = plotted(report)
    takeaway = " ".join(_takeaway(panel) for panel in panels) or "Not drawn: no start of a process was timed."
    return Chart(
        title=TITLE,
        how_to_read=(
            "Each bar is the start of one process: loading the weights, applying the preset, and the first call, which "
            "includes all compilation. A cold cache has nothing compiled on disk, a warm one all that an earlier run "
            "of the same preset compiled; without either word it is the user's own cache. Right of the bar: the first "
            "call at a size that is new to the process, and later calls. Whiskers are 95 % intervals of the whole."
        ),
        takeaway=takeaway,
        alt=f"Stacked bars of seconds to load, apply and make the first call. {takeaway}",
        png=stacked_picture(panels, COLORS) if panels else None,
    )


def _panel(groups: Sequence[AnalyzedGroup]) -> StackedPanel:
    """Starts are those of the first workload that a process measured."""
    caches = [cache for cache in _CACHES if any(group.compile_cache == cache for group in groups)]
    # Where the cache is part of the experiment, the starts of other runs would only blur it.
    caches = [cache for cache in caches if cache != "user"] or caches
    shown = [next(group for group in groups if group.compile_cache == cache) for cache in caches]
    rows = [
        row
        for preset in shown[0].presets
        if preset != CONTROL
        for group in shown
        if (row := _row(group, preset)) is not None
    ]
    return StackedPanel(f"First: {workload_name(shown[0].workload)}", provenance(shown), tuple(rows))


def _row(group: AnalyzedGroup, preset: str) -> StackedRow | None:
    runs = group.runs_of(preset)
    starts = [start for run in runs if (start := _start(run.record)) is not None]
    name = f"{preset}{_CACHES[group.compile_cache]}"
    if not starts:
        failures = group.failures_of(preset)
        return StackedRow(name, (), None, f"{failures[0].status}: {failures[0].reason}") if failures else None
    parts = [
        Part(part, mean_estimate(list(values)).value)
        for part, values in zip(COLORS, zip(*starts, strict=True), strict=True)
    ]
    notes = [f"new size {fmt.seconds(unseen.value)}"] if (unseen := _unseen([run.record for run in runs])) else []
    if (row := group.row(preset)) and row.time:
        notes.append(f"then {fmt.seconds(row.time.mean.value)}")
    return StackedRow(name, tuple(parts), mean_estimate([sum(start) for start in starts]), ", ".join(notes))


def _start(record: Record) -> tuple[float, float, float] | None:
    first = next((m.first_call_s for m in record.measurements if m.first_call_s is not None), None)
    if record.load_s is None or record.apply_s is None or first is None:
        return None
    return record.load_s, record.apply_s, first


def _unseen(records: Sequence[Record]) -> Estimate | None:
    """The first call of the second size that a process ran."""
    calls = []
    for record in records:
        sizes = {(m.workload.width, m.workload.height): m for m in reversed(record.measurements)}
        first = record.measurements[0].workload
        others = [m for size, m in sizes.items() if size != (first.width, first.height) and m.samples]
        if others:
            calls.append(others[-1].samples[0].wall_s)
    return mean_estimate(calls) if calls else None


def _takeaway(panel: StackedPanel) -> str:
    slowest = max((row for row in panel.rows if row.whole), key=lambda row: row.whole.value if row.whole else 0)
    assert slowest.whole is not None
    first = next(part.seconds for part in slowest.parts if part.name == FIRST)
    # A name that has its cache in it has one comma already.
    subject = f"{slowest.name}," if "," in slowest.name else slowest.name
    return (
        f"{subject} starts slowest: {fmt.seconds_estimate(slowest.whole)} to its first image, "
        f"{fmt.seconds(first)} of that in the first call."
    )
