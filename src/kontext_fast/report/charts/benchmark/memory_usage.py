"""Peak memory of a call on the GPU: what the process held, what torch allocated of it, and the sizes of cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.names import group_name
from kontext_fast.analysis.ranking import leading_groups
from kontext_fast.analysis.rows import Row
from kontext_fast.analysis.tiers import shown_rows
from kontext_fast.records.schema import BASELINE, Memory
from kontext_fast.report.charting import Chart, not_drawn
from kontext_fast.report.model import Report
from kontext_fast.report.plots import style
from kontext_fast.report.plots.rows import Rows, rows_in
from kontext_fast.report.plots.style import Picture, Slot
from kontext_fast.report.text.phrases import provenance

SECTION = "memory"
FILE = "performance/memory_usage.png"
TITLE = "Peak memory of a call"
HOW = (
    "The pale bar is the most that the whole process held in any measured call, which decides what fits; the dark one "
    "inside is what torch allocated of it. Where no GPU ran, it is the process's memory of the host. Dashed lines are "
    "sizes of cards. GiB are 2**30 bytes. "
    "Of other projects the fastest recipe at equal work is drawn; tables have them all."
)
HELD, ALLOCATED = style.SKY, style.BLUE
CARDS_GB = (16, 24, 40, 48, 80)
CARDS_IN = 0.2
"""Above the rows, for the names of the cards."""
GIB = 2**30


@dataclass(frozen=True)
class MemoryRow:
    preset: str
    memory: Memory
    """The largest of each peak over all measured calls, as everywhere in a report."""
    processes: int


@dataclass(frozen=True)
class MemoryPanel:
    title: str
    subtitle: str
    rows: tuple[MemoryRow, ...]


def plotted(report: Report) -> tuple[MemoryPanel, ...]:
    """A panel of the group that a report leads with, for each checkpoint and machine: the centre of a suite."""
    panels = map(_panel, leading_groups(report.analysis))
    return tuple(panel for panel in panels if panel.rows)


def draw(report: Report) -> Chart:
    panels = plotted(report)
    if not panels:
        return not_drawn(TITLE, HOW, "no call had its memory counted")
    takeaway = " ".join(map(_takeaway, panels))
    return Chart(
        title=TITLE,
        how_to_read=HOW,
        takeaway=takeaway,
        alt=f"Bars of peak memory per preset. {takeaway}",
        picture=_picture(takeaway, panels),
        source="; ".join(panel.subtitle for panel in panels),
    )


def _panel(group: AnalyzedGroup) -> MemoryPanel:
    rows = tuple(map(_row, filter(_is_counted, shown_rows(group))))
    return MemoryPanel(group_name(group), provenance([group]), rows)


def _is_counted(row: Row) -> bool:
    return row.time is not None and fmt.deciding_peak(row.memory) is not None


def _row(row: Row) -> MemoryRow:
    assert row.time is not None
    return MemoryRow(row.preset, row.memory, row.time.mean.n)


def _held(row: MemoryRow) -> int:
    return fmt.deciding_peak(row.memory) or 0


def _takeaway(panel: MemoryPanel) -> str:
    """The preset that needs least, what it fits on, and what baseline needs."""
    least = min(panel.rows, key=_held)
    card = fmt.smallest_card(least.memory)
    baseline = next((row for row in panel.rows if row.preset == BASELINE and row is not least), None)
    against = f"; baseline needs {fmt.peak_memory(baseline.memory)}" if baseline else ""
    fits = f" and {card}" if card else ""
    return f"{least.preset} needs least, {fmt.peak_memory(least.memory)}{fits}{against}."


def _picture(takeaway: str, panels: Sequence[MemoryPanel]) -> Picture:
    names = [("held by the process", HELD)]
    if any(row.memory.allocated_peak_bytes for panel in panels for row in panel.rows):
        names.append(("allocated by torch", ALLOCATED))
    return style.panels_picture(
        takeaway, panels, lambda panel, canvas: rows_in(len(panel.rows), canvas) + CARDS_IN, _draw, names
    )


def _draw(slot: Slot, panel: MemoryPanel) -> None:
    rows = Rows(slot, [row.preset for row in panel.rows], "GiB", head_in=0.1 + CARDS_IN)
    rows.room_for([(_held(row) / GIB, fmt.peak_memory(row.memory)) for row in panel.rows])
    on_gpu = any(row.memory.device_process_peak_bytes for row in panel.rows)
    for size in CARDS_GB if on_gpu else ():
        if size < rows.axes.get_xlim()[1]:
            rows.axes.axvline(size, color=style.GRAY, linewidth=1, linestyle=style.DASHED, alpha=0.6, zorder=0.5)
            rows.axes.text(size, -0.5, f"{size} GB", fontsize=10, color=style.MUTED, ha="center", va="bottom")
    for number, row in enumerate(panel.rows):
        rows.name(number, row.preset)
        rows.bar(number, _held(row) / GIB, HELD)
        if row.memory.allocated_peak_bytes:
            rows.bar(number, row.memory.allocated_peak_bytes / GIB, ALLOCATED)
        rows.words(_held(row) / GIB, number, fmt.peak_memory(row.memory))
    for number, row in enumerate(panel.rows):
        host = row.memory.host_rss_peak_bytes
        of_host = f"; {fmt.gib(host)} of the host" if host and fmt.smallest_card(row.memory) else ""
        card = f"; {words}" if (words := fmt.smallest_card(row.memory)) else ""
        held = f"{fmt.peak_memory(row.memory)} ({fmt.peak_memory_detail(row.memory)})"
        processes = fmt.count(row.processes, "process", "processes")
        rows.hit(number, f"{row.preset}: {held}{card}{of_host}; largest of {processes}", row.preset)
