"""How long clients of a server under load waited, and how many of them got their image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.names import group_name
from kontext_fast.analysis.served_load import LoadSummary, load_summary, served_requests
from kontext_fast.records.schema import LoadTest
from kontext_fast.report.charting import Chart, not_drawn
from kontext_fast.report.model import Report
from kontext_fast.report.plots import style
from kontext_fast.report.plots.style import Canvas, Picture, Slot
from kontext_fast.report.plots.svg import tip
from kontext_fast.report.text.phrases import provenance

SECTION = "serving"
FILE = "performance/served_latency.png"
TITLE = "Latency of a server under load"
HOW = (
    "Each line rises by one request where its image arrived, counted from when the request was due; what is missing "
    "to 100 % was refused, failed, or left by its client. The dashed line is the deadline."
)


@dataclass(frozen=True)
class LatencyPanel:
    """One load test."""

    title: str
    subtitle: str
    preset: str
    latencies_s: tuple[float, ...]
    """Of the requests that were served, ascending."""
    requests: int
    deadline_s: float
    alone_s: float
    """Median time of a run in the worker."""
    summary: LoadSummary


def plotted(report: Report) -> tuple[LatencyPanel, ...]:
    """One panel per load test that served anything."""
    panels = []
    for group in report.analysis:
        for run in group.runs:
            test = run.record.load_test
            if test is not None:
                title = f"{run.record.preset}: {group_name(group)}, {test.rate_per_s:.3g} requests a second"
                panels.append(_panel(title, provenance([group]), run.record.preset, test))
    return tuple(panels)


def draw(report: Report) -> Chart:
    panels = plotted(report)
    if not panels:
        return not_drawn(TITLE, HOW, "no server was put under load")
    takeaway = " ".join(map(_takeaway, panels))
    return Chart(
        title=TITLE,
        how_to_read=HOW,
        takeaway=takeaway,
        alt=f"Rising lines of answered requests over seconds. {takeaway}",
        picture=_picture(takeaway, panels),
        source="; ".join(panel.subtitle for panel in panels),
    )


def _panel(title: str, subtitle: str, preset: str, test: LoadTest) -> LatencyPanel:
    served = served_requests(test)
    return LatencyPanel(
        title=title,
        subtitle=subtitle,
        preset=preset,
        latencies_s=tuple(sorted(request.latency_s for request in served)),
        requests=len(test.requests),
        deadline_s=test.deadline_s,
        alone_s=float(np.median([request.run_s for request in served if request.run_s is not None])),
        summary=load_summary(test),
    )


def _takeaway(panel: LatencyPanel) -> str:
    summary = panel.summary
    return (
        f"{panel.preset}: {summary.in_time} of {fmt.count(summary.requests, 'request')} served in time at "
        f"{100 * summary.busy_share:.0f} % load, p50 {summary.latency_p50}, p95 {summary.latency_p95}."
    )


def _picture(takeaway: str, panels: tuple[LatencyPanel, ...]) -> Picture:
    return style.panels_picture(takeaway, panels, _height_in, _draw_panel)


def _height_in(_: LatencyPanel, canvas: Canvas) -> float:
    return 3.4 if canvas.narrow else 3.8


def _draw_panel(slot: Slot, panel: LatencyPanel) -> None:
    axes = slot.axes(0.17 if slot.canvas.narrow else 0.085, 0.975)
    share = 100 * np.arange(1, len(panel.latencies_s) + 1) / panel.requests
    last = max(panel.latencies_s[-1], panel.deadline_s if panel.deadline_s < 3 * panel.latencies_s[-1] else 0.0)
    (line,) = axes.step(
        [0.0, *panel.latencies_s, 1.05 * last],
        [0.0, *share, share[-1]],
        where="post",
        color=style.color_of(panel.preset),
        linewidth=2,
    )
    tip(line, _takeaway(panel), panel.preset)
    axes.set_xlim(0, 1.05 * last)
    axes.set_ylim(0, 104)
    style.clean(axes, "both", x="seconds from when a request was due", y="% of requests answered")
    _mark(axes, panel.alone_s, "one run", style.MUTED)
    if panel.deadline_s <= last:
        _mark(axes, panel.deadline_s, "deadline", style.INK)
    for percentile, name in ((panel.summary.latency_p50, "p50"), (panel.summary.latency_p95, "p95")):
        if percentile is not None:
            answered = 100 * sum(value <= percentile.seconds for value in panel.latencies_s) / panel.requests
            (mark,) = axes.plot([percentile.seconds], [answered], "o", markersize=8, color=style.color_of(panel.preset))
            style.row_words(axes, percentile.seconds, answered, f"{name} {fmt.seconds(percentile.seconds)}", down=10)
            tip(mark, f"{name}: {percentile}", panel.preset)


def _mark(axes: Any, seconds: float, words: str, color: str) -> None:
    axes.axvline(seconds, color=color, linewidth=1.2, linestyle=style.DASHED, zorder=1)
    style.row_words(axes, seconds, 4, words, color, size=10)
