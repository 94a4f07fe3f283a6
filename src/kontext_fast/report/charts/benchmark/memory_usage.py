"""Peak memory of a call: what torch allocated, what it reserved, what the process held, and the host's share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.groups import Run
from kontext_fast.analysis.names import group_name
from kontext_fast.analysis.ranking import leading_groups
from kontext_fast.records.schema import BASELINE, Memory
from kontext_fast.report.charting import Chart
from kontext_fast.report.model import Report
from kontext_fast.report.plots import style
from kontext_fast.report.text.phrases import provenance
from kontext_fast.stats.intervals import Estimate, mean_estimate

SECTION = "memory"
FILE = "performance/memory_usage.png"
TITLE = "Peak memory of a call"
KINDS = {
    "allocated_peak_bytes": "GPU, allocated by torch",
    "reserved_peak_bytes": "GPU, reserved by torch",
    "device_process_peak_bytes": "GPU, whole process",
    "host_rss_peak_bytes": "host, resident",
}
COLORS = dict(zip(KINDS, style.COLORS, strict=False))
ROW_IN, GAP = 0.34, 0.6
"""Of a bar, and between the bars of two presets as a share of it."""
GIB = 2**30


@dataclass(frozen=True)
class MemoryBar:
    preset: str
    kind: str
    """A key of `KINDS`."""
    peak: Estimate
    """Bytes: the mean over processes of each one's highest call."""


@dataclass(frozen=True)
class MemoryPanel:
    title: str
    subtitle: str
    bars: tuple[MemoryBar, ...]


def plotted(report: Report) -> tuple[MemoryPanel, ...]:
    """Of each checkpoint and machine the group that a report leads with: the centre of a suite."""
    panels = map(_panel, leading_groups(report.analysis))
    return tuple(panel for panel in panels if panel.bars)


def draw(report: Report) -> Chart:
    panels = plotted(report)
    takeaway = " ".join(_takeaway(panel) for panel in panels) or "Not drawn: no call had its memory counted."
    return Chart(
        title=TITLE,
        how_to_read=(
            "Each bar is the highest point of a call, as the mean over processes with its 95 % interval; shorter is "
            "better. What fits on a card is decided by the whole process, not by what torch allocated. GiB are 2**30 "
            "bytes."
        ),
        takeaway=takeaway,
        alt=f"Bars of peak memory per preset. {takeaway}",
        png=_picture(panels) if panels else None,
    )


def _panel(group: AnalyzedGroup) -> MemoryPanel:
    bars = [
        MemoryBar(row.preset, kind, peak)
        for row in group.ranked
        for kind in KINDS
        if (peak := _peak(group.runs_of(row.preset), kind)) is not None
    ]
    return MemoryPanel(group_name(group), provenance([group]), tuple(bars))


def _peak(runs: Sequence[Run], kind: str) -> Estimate | None:
    assert kind in Memory.model_fields
    highest = []
    for run in runs:
        known = [value for sample in run.samples if (value := getattr(sample.memory, kind)) is not None]
        if known:
            highest.append(float(max(known)))
    return mean_estimate(highest) if highest else None


def _takeaway(panel: MemoryPanel) -> str:
    """The preset that needs most and the one that needs least, by the first kind that was counted."""
    kind = panel.bars[0].kind
    peaks = {bar.preset: bar.peak.value for bar in panel.bars if bar.kind == kind}
    least, most = min(peaks, key=lambda name: peaks[name]), max(peaks, key=lambda name: peaks[name])
    if least == most:
        return f"{panel.title}: {least} needs {fmt.gib(int(peaks[least]))} ({KINDS[kind]})."
    against = f"; baseline needs {fmt.gib(int(peaks[BASELINE]))}" if BASELINE in peaks else ""
    return (
        f"{panel.title}: {least} needs least with {fmt.gib(int(peaks[least]))}, {most} most with "
        f"{fmt.gib(int(peaks[most]))}{against} ({KINDS[kind]})."
    )


def _picture(panels: Sequence[MemoryPanel]) -> bytes:
    used = [kind for kind in KINDS if any(bar.kind == kind for panel in panels for bar in panel.bars)]
    return style.draw_panels(
        panels,
        lambda panel: style.HEAD_IN + style.FOOT_IN + ROW_IN * _row_count(panel),
        _draw_panel,
        [(KINDS[kind], COLORS[kind]) for kind in used],
    )


def _row_count(panel: MemoryPanel) -> float:
    return len(panel.bars) + GAP * len({bar.preset for bar in panel.bars})


def _draw_panel(figure: Any, panel: MemoryPanel, top_in: float, height_in: float) -> None:
    axes = style.panel_axes(figure, top_in, height_in, left=0.2, right=0.985)
    style.rows(axes, _row_count(panel), "GiB")
    y = 0.0
    for preset, of_preset in groupby(panel.bars, key=lambda bar: bar.preset):
        bars = list(of_preset)
        style.row_name(axes, y + (len(bars) - 1) / 2, preset)
        for bar in bars:
            size = bar.peak.value / GIB
            interval = bar.peak.interval and (bar.peak.interval[0] / GIB, bar.peak.interval[1] / GIB)
            axes.barh(y, size, height=0.82, color=COLORS[bar.kind], linewidth=0)
            style.whisker(axes, y, interval)
            words = f"{fmt.gib(int(bar.peak.value))}  n={bar.peak.n}"
            style.row_words(axes, style.end_of(size, interval), y, words)
            y += 1
        y += GAP
    axes.set_xlim(0, max(bar.peak.value for bar in panel.bars) / GIB * 1.3)
