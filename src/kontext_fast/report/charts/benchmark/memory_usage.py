"""Peak memory of a call: what torch allocated, what it reserved, what the process held, and the host's share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

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
ROW_IN = 0.34


@dataclass(frozen=True)
class Bar:
    preset: str
    kind: str
    """A key of `KINDS`."""
    peak: Estimate
    """Bytes: the mean over processes of each one's highest call."""


@dataclass(frozen=True)
class Panel:
    title: str
    subtitle: str
    bars: tuple[Bar, ...]


def plotted(report: Report) -> tuple[Panel, ...]:
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


def _panel(group: AnalyzedGroup) -> Panel:
    bars = [
        Bar(row.preset, kind, peak)
        for row in group.ranked
        for kind in KINDS
        if (peak := _peak(group.runs_of(row.preset), kind)) is not None
    ]
    return Panel(group_name(group), provenance([group]), tuple(bars))


def _peak(runs: Sequence[Run], kind: str) -> Estimate | None:
    assert kind in Memory.model_fields
    highest = []
    for run in runs:
        known = [value for sample in run.samples if (value := getattr(sample.memory, kind)) is not None]
        if known:
            highest.append(float(max(known)))
    return mean_estimate(highest) if highest else None


def _takeaway(panel: Panel) -> str:
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


def _picture(panels: Sequence[Panel]) -> bytes:
    heights = [style.HEAD_IN + style.FOOT_IN + ROW_IN * _rows(panel) for panel in panels]
    figure = style.new_figure(sum(heights))
    top = sum(heights)
    for panel, height in zip(panels, heights, strict=True):
        style.heading(figure, top, panel.title, panel.subtitle)
        axes = style.panel_axes(figure, top, height, left=0.2, right=0.985)
        style.bare(axes, "GiB")
        axes.set_ylim(_rows(panel) - 0.4, -0.6)
        _draw_bars(axes, panel)
        top -= height
    used = [kind for kind in KINDS if any(bar.kind == kind for panel in panels for bar in panel.bars)]
    style.legend(figure, sum(heights), [(KINDS[kind], COLORS[kind]) for kind in used])
    return style.png(figure)


def _rows(panel: Panel) -> float:
    return len(panel.bars) + 0.6 * len({bar.preset for bar in panel.bars})


def _draw_bars(axes: object, panel: Panel) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    by_preset: dict[str, list[Bar]] = defaultdict(list)
    for bar in panel.bars:
        by_preset[bar.preset].append(bar)
    y = 0.0
    for preset, bars in by_preset.items():
        style.row_name(axes, y + (len(bars) - 1) / 2, preset)
        for bar in bars:
            size = bar.peak.value / 2**30
            axes.barh(y, size, height=0.82, color=COLORS[bar.kind], linewidth=0)
            end = size
            if bar.peak.interval:
                low, high = (bound / 2**30 for bound in bar.peak.interval)
                style.whisker(axes, y, low, high)
                end = max(end, high)
            style.row_words(axes, end, y, f"{fmt.gib(int(bar.peak.value))}  n={bar.peak.n}")
            y += 1
        y += 0.6
    axes.set_xlim(0, max(bar.peak.value for bar in panel.bars) / 2**30 * 1.3)
