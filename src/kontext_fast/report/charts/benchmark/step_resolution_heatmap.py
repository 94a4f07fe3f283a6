"""Seconds per call over step counts and sizes, for every preset; what was not measured says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.groups import Group, by_machine
from kontext_fast.records.names import machine_name
from kontext_fast.records.schema import CONTROL, ResultFile
from kontext_fast.report.charting import Chart
from kontext_fast.report.model import Report
from kontext_fast.report.plots import style
from kontext_fast.report.text.phrases import provenance
from kontext_fast.stats.intervals import Estimate

SECTION = "sizes"
FILE = "performance/step_resolution_heatmap.png"
TITLE = "Time per call over steps and sizes"
MOST_PRESETS = 6
ROW_IN, TABLE_HEAD_IN = 0.85, 0.75
_HEAD_IN = 1.0

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


def plotted(report: Report) -> tuple[HeatmapPanel, ...]:
    """One panel per checkpoint and machine where edits were measured at two sizes and two step counts at least."""
    panels = (_panel(of, _planned(report.result, of[0])) for of in by_machine(filter(_is_shown, report.analysis)))
    return tuple(panel for panel in panels if len(panel.steps) > 1 and len(panel.sizes) > 1)


def draw(report: Report) -> Chart:
    panels = plotted(report)
    takeaway = " ".join(_takeaway(panel) for panel in panels)
    takeaway = takeaway or "Not drawn: edits were not measured at two sizes and two step counts (suite full)."
    return Chart(
        title=TITLE,
        how_to_read=(
            "Rows are steps, columns are sizes really run; darker is slower, on one scale for all presets of a panel. "
            "Each cell has the mean over processes, its 95 % interval and the number of processes."
        ),
        takeaway=takeaway,
        alt=f"A table of seconds for each step count and size. {takeaway}",
        png=_picture(panels) if panels else None,
    )


def _is_shown(group: Group) -> bool:
    workload = group.workload
    return workload is not None and workload.mode == "edit" and workload.batch == 1 and group.compile_cache == "user"


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
    # A single cell is no table; and presets that were measured everywhere come first, where there are too many.
    tables = {name: cells for name, cells in tables.items() if len(cells) > 1} or tables
    names = sorted(tables, key=lambda name: -len(tables[name]))[:MOST_PRESETS]
    return HeatmapPanel(
        title="Edits, one image per call",
        subtitle=provenance(groups),
        steps=tuple(sorted({steps for steps, _ in places})),
        sizes=tuple(sorted({size for _, size in places}, key=lambda size: (size[0] * size[1], size))),
        tables=tuple(HeatmapTable(name, tables[name]) for name in tables if name in names),
    )


def _takeaway(panel: HeatmapPanel) -> str:
    sentences = []
    single = [table.preset for table in panel.tables if len(table.cells) == 1]
    for table in panel.tables:
        if table.preset in single:
            continue
        slow, fast = (pick(table.cells, key=lambda place: table.cells[place].value) for pick in (max, min))
        missing = len(panel.steps) * len(panel.sizes) - len(table.cells)
        note = f"; {fmt.count(missing, 'cell')} not measured" if missing else ""
        sentences.append(
            f"{table.preset} takes from {fmt.seconds_estimate(table.cells[fast])} ({_place(fast)}) to "
            f"{fmt.seconds_estimate(table.cells[slow])} ({_place(slow)}){note}."
        )
    if single:
        sentences.append(f"Measured at a single size and step count: {', '.join(single)}.")
    return " ".join(sentences)


def _place(place: tuple[int, Size]) -> str:
    steps, (width, height) = place
    return f"{width}x{height}, {fmt.count(steps, 'step')}"


def _picture(panels: Sequence[HeatmapPanel]) -> bytes:
    return style.draw_panels(panels, lambda panel: _HEAD_IN + len(panel.tables) * _table_in(panel) + 0.1, _draw_panel)


def _draw_panel(figure: Any, panel: HeatmapPanel, top_in: float, height_in: float) -> None:
    slowest = max(estimate.value for table in panel.tables for estimate in table.cells.values())
    for index, table in enumerate(panel.tables):
        lower = top_in - _HEAD_IN - (index + 1) * _table_in(panel) + 0.1
        _draw_table(figure, lower, panel, table, slowest)


def _table_in(panel: HeatmapPanel) -> float:
    return ROW_IN * len(panel.steps) + TABLE_HEAD_IN


def _draw_table(figure: Any, lower_in: float, panel: HeatmapPanel, table: HeatmapTable, slowest: float) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    inches = figure.get_figheight()
    axes = figure.add_axes((0.13, lower_in / inches, 0.85, ROW_IN * len(panel.steps) / inches))
    axes.set_xlim(0, len(panel.sizes))
    axes.set_ylim(len(panel.steps), 0)
    axes.axis("off")
    axes.text(0, -0.62, table.preset, fontsize=13, fontweight="bold", color=style.INK, parse_math=False)
    shades = colormaps["cividis_r"]
    for column, (width, height) in enumerate(panel.sizes):
        axes.text(column + 0.5, -0.12, f"{width}x{height}", ha="center", fontsize=11, color=style.MUTED)
    for row, steps in enumerate(panel.steps):
        style.row_name(axes, row + 0.5, fmt.count(steps, "step"))
        for column, size in enumerate(panel.sizes):
            estimate = table.cells.get((steps, size))
            shade = shades(estimate.value / slowest) if estimate else "#f4f5f6"
            axes.add_patch(Rectangle((column, row), 1, 1, facecolor=shade, edgecolor="white", linewidth=2))
            _write_cell(axes, column + 0.5, row + 0.5, estimate, _ink_on(shade))


def _ink_on(shade: Any) -> str:
    """White or black, whichever can be read better on `shade`."""
    from matplotlib.colors import to_rgb

    luminance = sum(
        weight * (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
        for weight, value in zip((0.2126, 0.7152, 0.0722), to_rgb(shade), strict=True)
    )
    # Where the contrasts of WCAG with white and with black are the same.
    return "white" if luminance < 0.179 else style.INK


def _write_cell(axes: Any, x: float, y: float, estimate: Estimate | None, ink: str) -> None:
    if estimate is None:
        axes.text(x, y, fmt.NOT_MEASURED, ha="center", va="center", fontsize=10, color=style.MUTED, style="italic")
        return
    interval = fmt.seconds_range(estimate) or "no interval"
    lines = ((-0.27, fmt.seconds_estimate(estimate), 12.5), (0.06, interval, 10), (0.32, f"n={estimate.n}", 10))
    for lower, words, size in lines:
        axes.text(x, y + lower, words, ha="center", va="center", fontsize=size, color=ink)
