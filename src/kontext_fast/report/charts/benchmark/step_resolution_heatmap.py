"""Seconds per call over step counts and sizes, for every preset; what was not measured says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.consistency import contradictions
from kontext_fast.analysis.groups import Group, by_machine
from kontext_fast.records.names import machine_name
from kontext_fast.records.schema import BASELINE, CONTROL, ResultFile
from kontext_fast.report.charting import Chart, not_drawn
from kontext_fast.report.model import Report
from kontext_fast.report.plots import style
from kontext_fast.report.plots.style import Picture, Slot
from kontext_fast.report.plots.svg import tip
from kontext_fast.report.text.phrases import provenance
from kontext_fast.stats.intervals import Estimate

SECTION = "sizes"
FILE = "performance/step_resolution_heatmap.png"
TITLE = "Time per call over steps and sizes"
HOW = (
    "Rows are steps, columns are sizes really run; darker is slower, on one scale for all presets. A cell has the mean "
    "over processes, and its 95 % interval where there are three processes at least. The last table divides baseline's "
    "mean by that of the preset which was measured most: darker gains more."
)
MOST_PRESETS = 3
ROW_IN, TABLE_HEAD_IN = 0.44, 0.72
ON_LIGHT, ON_DARK = "#101112", "#fdfdfd"
"""On cells, whose colours are the same in every scheme of a page."""

Size = tuple[int, int]


@dataclass(frozen=True)
class HeatmapTable:
    """One preset."""

    preset: str
    cells: dict[tuple[int, Size], Estimate]
    """(steps, size in pixels) to seconds per call; what was not measured is absent."""


@dataclass(frozen=True)
class HeatmapPanel:
    title: str
    subtitle: str
    steps: tuple[int, ...]
    sizes: tuple[Size, ...]
    """By area."""
    tables: tuple[HeatmapTable, ...]

    @property
    def factors(self) -> tuple[str, dict[tuple[int, Size], float]] | None:
        """A preset and the quotients of baseline's means by its own; None where nothing has both."""
        baseline = next((table.cells for table in self.tables if table.preset == BASELINE), None)
        others = [table for table in self.tables if table.preset != BASELINE]
        if baseline is None or not others:
            return None
        other = max(others, key=lambda table: len(table.cells.keys() & baseline.keys()))
        quotients = {
            place: baseline[place].value / estimate.value
            for place, estimate in other.cells.items()
            if place in baseline
        }
        return (other.preset, quotients) if len(quotients) > 1 else None


def plotted(report: Report) -> tuple[HeatmapPanel, ...]:
    """One panel per checkpoint and machine where edits were measured at two sizes and two step counts at least."""
    panels = (
        _panel(groups, _planned(report.result, groups[0]))
        for groups in by_machine(group for group in report.analysis if group.is_of_single_edits)
    )
    return tuple(panel for panel in panels if len(panel.steps) > 1 and len(panel.sizes) > 1)


def draw(report: Report) -> Chart:
    panels = plotted(report)
    if not panels:
        return not_drawn(TITLE, HOW, "edits were not measured at two sizes and two step counts (suite full)")
    takeaway = " ".join(map(_takeaway, panels))
    doubts = contradictions(group for group in report.analysis if group.is_of_single_edits)
    return Chart(
        title=TITLE,
        how_to_read=" ".join([HOW, *(f"In doubt: {doubt}" for doubt in doubts)]),
        takeaway=takeaway,
        alt=f"A table of seconds for each step count and size. {takeaway}",
        picture=_picture(takeaway, panels),
        source="; ".join(panel.subtitle for panel in panels),
    )


def _planned(result: ResultFile, group: Group) -> list[tuple[int, Size]]:
    """What was to be measured where `group` was, so that what was not reached has its place."""
    cells = dict.fromkeys(
        cell
        for record in result.records
        if record.compile_cache == group.compile_cache
        and machine_name(record.environment) in (None, group.machine)
        and record.checkpoint in (None, group.checkpoint)
        for cell in record.cells
    )
    planned = []
    for cell in cells:
        width, _, height = cell.size.partition("x")
        if cell.mode == "edit" and cell.batch == 1 and height:
            planned.append((cell.steps, (int(width), int(height))))
    return planned


def _panel(groups: Sequence[AnalyzedGroup], planned: Sequence[tuple[int, Size]]) -> HeatmapPanel:
    tables: dict[str, dict[tuple[int, Size], Estimate]] = {}
    places = set(planned)
    for group in groups:
        assert group.workload is not None
        place = (group.workload.steps, (group.workload.width, group.workload.height))
        places.add(place)
        for row in group.rows:
            if row.preset != CONTROL and row.time:
                tables.setdefault(row.preset, {})[place] = row.time.mean
    # What was measured at fewer than half of the places is in the tables of the page alone.
    most = max(map(len, tables.values()), default=0)
    tables = {name: cells for name, cells in tables.items() if 2 * len(cells) > most}
    names = sorted(tables, key=lambda name: -len(tables[name]))[:MOST_PRESETS]
    return HeatmapPanel(
        title="Edits, one image per call",
        subtitle=provenance(groups),
        steps=tuple(sorted({steps for steps, _ in places})),
        sizes=tuple(sorted({size for _, size in places}, key=lambda size: (size[0] * size[1], size))),
        tables=tuple(HeatmapTable(name, tables[name]) for name in tables if name in names),
    )


def _takeaway(panel: HeatmapPanel) -> str:
    if panel.factors is None:
        table = max(panel.tables, key=lambda table: len(table.cells))
        slow, fast = (pick(table.cells, key=lambda place: table.cells[place].value) for pick in (max, min))
        return (
            f"{table.preset} takes from {fmt.seconds_estimate(table.cells[fast])} ({_place(fast)}) to "
            f"{fmt.seconds_estimate(table.cells[slow])} ({_place(slow)})."
        )
    preset, quotients = panel.factors
    low, high = (pick(quotients, key=lambda place: quotients[place]) for pick in (min, max))
    missing = len(panel.steps) * len(panel.sizes) - len(quotients)
    note = f"; {fmt.count(missing, 'cell')} not measured" if missing else ""
    return (
        f"{preset} is {quotients[low]:.1f} ({_place(low)}) to {quotients[high]:.1f} times ({_place(high)}) as fast as "
        f"baseline over {fmt.count(len(quotients), 'cell')}{note}."
    )


def _place(place: tuple[int, Size]) -> str:
    steps, (width, height) = place
    return f"{width}x{height}, {fmt.count(steps, 'step')}"


def _picture(takeaway: str, panels: Sequence[HeatmapPanel]) -> Picture:
    return style.panels_picture(
        takeaway, panels, lambda panel, _: _table_in(panel) * _table_count(panel) + 0.1, _draw_panel
    )


def _table_count(panel: HeatmapPanel) -> int:
    return len(panel.tables) + (panel.factors is not None)


def _table_in(panel: HeatmapPanel) -> float:
    return ROW_IN * len(panel.steps) + TABLE_HEAD_IN


def _draw_panel(slot: Slot, panel: HeatmapPanel) -> None:
    slowest = max(estimate.value for table in panel.tables for estimate in table.cells.values())
    tables = [(table.preset, _of_seconds(table, slowest)) for table in panel.tables]
    if panel.factors is not None:
        preset, quotients = panel.factors
        tables.append((f"baseline / {preset}: times as fast", _of_factors(quotients)))
    for index, (name, cells) in enumerate(tables):
        _draw_table(slot, index, panel, name, cells)


@dataclass(frozen=True)
class _Cell:
    shade: str
    words: str
    note: str = ""
    tip: str = ""


def _of_seconds(table: HeatmapTable, slowest: float) -> dict[tuple[int, Size], _Cell]:
    return {
        place: _Cell(
            _shade("cividis_r", estimate.value / slowest),
            fmt.seconds_estimate(estimate),
            fmt.seconds_range(estimate) or "",
            f"{table.preset}, {_place(place)}: {fmt.seconds_with_interval(estimate)}; {fmt.n_of(estimate)}",
        )
        for place, estimate in table.cells.items()
    }


def _of_factors(quotients: Mapping[tuple[int, Size], float]) -> dict[tuple[int, Size], _Cell]:
    most = max(quotients.values())
    return {place: _Cell(_shade("Blues", 0.7 * value / most), f"{value:.1f}x") for place, value in quotients.items()}


def _shade(colours: str, share: float) -> str:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return str(to_hex(colormaps[colours](share)))


def _draw_table(
    slot: Slot, index: int, panel: HeatmapPanel, name: str, cells: Mapping[tuple[int, Size], _Cell]
) -> None:
    from matplotlib.patches import Rectangle

    narrow, inches = slot.canvas.narrow, slot.figure.get_figheight()
    lower = slot.top_in - (index + 1) * _table_in(panel)
    left = 0.17 if narrow else 0.09
    axes = slot.figure.add_axes((left, lower / inches, 0.99 - left, ROW_IN * len(panel.steps) / inches))
    axes.set_xlim(0, len(panel.sizes))
    axes.set_ylim(len(panel.steps), 0)
    axes.axis("off")
    style.text(slot.figure, lower + _table_in(panel) - 0.3, name, fontsize=12, fontweight="bold", color=style.INK)
    for column, (width, height) in enumerate(panel.sizes):
        words = f"{width}\n{height}" if narrow else f"{width}x{height}"
        axes.text(column + 0.5, -0.12, words, ha="center", fontsize=9 if narrow else 11, color=style.MUTED)
    for row, steps in enumerate(panel.steps):
        words = str(steps) if narrow else fmt.count(steps, "step")
        axes.text(-0.06, row + 0.5, words, ha="right", va="center", fontsize=11, color=style.INK)
        for column, size in enumerate(panel.sizes):
            cell = cells.get((steps, size), _Cell(style.NO_DATA, "" if narrow else fmt.NOT_MEASURED))
            patch = Rectangle((column + 0.01, row + 0.02), 0.98, 0.96, facecolor=cell.shade, edgecolor="none")
            axes.add_patch(patch)
            if cell.tip:
                tip(patch, cell.tip)
            _write_cell(axes, column + 0.5, row + 0.5, cell, narrow)


def _write_cell(axes: Any, x: float, y: float, cell: _Cell, narrow: bool) -> None:
    ink = style.MUTED if cell.shade == style.NO_DATA else _ink_on(cell.shade)
    note = "" if narrow else cell.note
    axes.text(
        x, y - (0.18 if note else 0), cell.words, ha="center", va="center", fontsize=9.5 if narrow else 11.5, color=ink
    )
    if note:
        axes.text(x, y + 0.24, note, ha="center", va="center", fontsize=9, color=ink)


def _ink_on(shade: str) -> str:
    """White or black, whichever can be read better on `shade`."""
    from matplotlib.colors import to_rgb

    luminance = sum(
        weight * (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
        for weight, value in zip((0.2126, 0.7152, 0.0722), to_rgb(shade), strict=True)
    )
    # Where the contrasts of WCAG with white and with black are the same.
    return ON_DARK if luminance < 0.179 else ON_LIGHT
