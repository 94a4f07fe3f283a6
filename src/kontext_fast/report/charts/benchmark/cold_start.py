"""What a process pays once: loading, applying the preset and the first call, with a cold and a warm compile cache."""

from __future__ import annotations

from collections.abc import Sequence

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.groups import by_machine
from kontext_fast.analysis.names import workload_name
from kontext_fast.analysis.ranking import headline_group_first
from kontext_fast.analysis.tiers import shown_rows
from kontext_fast.records.names import is_peer, parse_ablation
from kontext_fast.records.schema import CONTROL, CompileCache, Record
from kontext_fast.report.charting import Chart, not_drawn
from kontext_fast.report.model import Report
from kontext_fast.report.plots import style
from kontext_fast.report.plots.bars import Part, StackedPanel, StackedRow, stacked_picture
from kontext_fast.report.text.phrases import provenance
from kontext_fast.stats.intervals import Estimate, mean_estimate

SECTION = "cold"
FILE = "performance/cold_start.png"
TITLE = "From the start of a process to its first image"
HOW = (
    "Each bar is the start of one process: loading the weights, applying the preset, and the first call, which "
    "includes all compilation. A cold cache has nothing compiled on disk, a warm one all that an earlier run of the "
    "same preset compiled; without either word it is the user's own cache. Behind the bar: the first call at a size "
    "that is new to the process, and later calls. Whiskers are 95 % intervals of the whole. "
    "Of other projects the fastest recipe at equal work is drawn; tables have them all."
)
NOT_READ = " Random weights are drawn on the GPU and not read from disk, so their loading is left out."
LOAD, APPLY, FIRST = "load", "apply", "first call"
COLORS = {LOAD: style.GRAY, APPLY: style.GREEN, FIRST: style.BLUE}
_CACHES: dict[CompileCache, str] = {"cold": ", cold cache", "warm": ", warm cache", "user": ""}


def plotted(report: Report) -> tuple[StackedPanel, ...]:
    """One panel per checkpoint and machine: a row per preset and compile cache, seconds as means over processes."""
    panels = map(_panel, by_machine(report.analysis))
    return tuple(panel for panel in panels if panel.rows)


def draw(report: Report) -> Chart:
    panels = plotted(report)
    how = HOW + (NOT_READ if _is_random(report.analysis) else "")
    if not any(row.whole for panel in panels for row in panel.rows):
        return not_drawn(TITLE, how, "no start of a process was timed")
    takeaway = " ".join(map(_takeaway, panels))
    used = {part.name for panel in panels for row in panel.rows for part in row.parts}
    return Chart(
        title=TITLE,
        how_to_read=how,
        takeaway=takeaway,
        alt=f"Stacked bars of the seconds from the start of a process to its first image. {takeaway}",
        picture=stacked_picture(takeaway, panels, {name: color for name, color in COLORS.items() if name in used}),
        source="; ".join(panel.subtitle for panel in panels),
    )


def _is_random(groups: Sequence[AnalyzedGroup]) -> bool:
    return any(group.checkpoint is not None and group.checkpoint.random_weights for group in groups)


def _panel(groups: Sequence[AnalyzedGroup]) -> StackedPanel:
    """Starts are those of the first workload that a process measured, in the order of the page."""
    lead = headline_group_first(groups)[0]
    presets = [row.preset for row in shown_rows(lead)]
    hidden = {row.preset for row in lead.ranked}.difference(presets)
    presets += [preset for group in groups for preset in group.presets if preset not in hidden]
    shown = [preset for preset in dict.fromkeys(presets) if preset != CONTROL and not parse_ablation(preset)]
    rows = [row for preset in shown for group in _groups_of(preset, groups) if (row := _row(group, preset)) is not None]
    used = [group for group in groups if any(group.runs_of(preset) for preset in shown)] or groups
    first = next((run.record.measurements[0].workload for group in used for run in group.runs), lead.workload)
    return StackedPanel(f"First: {workload_name(first)}", provenance(used), tuple(rows))


def _groups_of(preset: str, groups: Sequence[AnalyzedGroup]) -> list[AnalyzedGroup]:
    """The first group of each compile cache; not those of the user's own where the cache was part of the experiment."""
    of_preset = [group for group in headline_group_first(groups) if group.runs_of(preset) or group.failures_of(preset)]
    first = {cache: next((group for group in of_preset if group.compile_cache == cache), None) for cache in _CACHES}
    chosen = [group for cache, group in first.items() if group is not None and cache != "user"]
    return chosen or [group for group in first.values() if group is not None]


def _row(group: AnalyzedGroup, preset: str) -> StackedRow | None:
    runs = group.runs_of(preset)
    measured = [(start, run.card) for run in runs if (start := _start(run.record)) is not None]
    starts, cards = [start for start, _ in measured], [card for _, card in measured]
    name = f"{preset}{_CACHES[group.compile_cache]}"
    if not starts:
        failures = group.failures_of(preset)
        reason = f"{failures[0].status}: {failures[0].reason}" if failures else None
        return StackedRow(name, (), None, reason, preset) if reason else None
    shown = [name for name in COLORS if name in starts[0]]
    parts = tuple(Part(part, mean_estimate([start[part] for start in starts], cards).value) for part in shown)
    notes = [f"new size {fmt.seconds(unseen.value)}"] if (unseen := _unseen([run.record for run in runs])) else []
    if (later := _later([run.record for run in runs])) is not None:
        notes.append(f"then {fmt.seconds(later.value)}")
    whole = mean_estimate([sum(start.values()) for start in starts], cards)
    return StackedRow(name, parts, whole, ", ".join(notes), preset)


def _start(record: Record) -> dict[str, float] | None:
    """Seconds of each part; random weights are not loaded from anywhere."""
    first = next((m.first_call_s for m in record.measurements if m.first_call_s is not None), None)
    if record.load_s is None or record.apply_s is None or first is None:
        return None
    start = {APPLY: record.apply_s, FIRST: first}
    is_random = record.checkpoint is not None and record.checkpoint.random_weights
    return start if is_random else {LOAD: record.load_s, **start}


def _later(records: Sequence[Record]) -> Estimate | None:
    """Calls after the first one, at the same size."""
    calls = [[s.wall_s for s in record.measurements[0].samples if not s.warmup] for record in records]
    means = [mean_estimate(of_process).value for of_process in calls if of_process]
    return mean_estimate(means) if means else None


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
    """The slowest start, and the start of the preset whose later calls are fastest: the last row that was measured."""
    measured = [row for row in panel.rows if row.whole]
    if not measured:
        return "No start was timed."
    slowest = max(measured, key=lambda row: row.whole.value if row.whole else 0)
    fastest = next((row for row in reversed(measured) if not is_peer(row.preset)), measured[-1])
    assert slowest.whole is not None
    assert fastest.whole is not None
    if slowest is fastest:
        first = next(part.seconds for part in slowest.parts if part.name == FIRST)
        time = fmt.seconds_estimate(slowest.whole)
        return f"{_subject(slowest)} takes {time} to its first image, {fmt.seconds(first)} of that in the first call."
    return (
        f"{_subject(fastest)} has its first image after {fmt.seconds_estimate(fastest.whole)}; "
        f"{_subject(slowest)} starts slowest, after {fmt.seconds_estimate(slowest.whole)}."
    )


def _subject(row: StackedRow) -> str:
    # A name that has its cache in it has one comma already.
    return f"{row.name}," if "," in row.name else row.name
