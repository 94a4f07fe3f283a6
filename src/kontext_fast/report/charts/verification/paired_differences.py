"""Scores of a preset minus those of baseline for the same item, with bounds, margins and the controls for scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from kontext_fast.metrics.base import Metric, Role, discover
from kontext_fast.report.charting import Chart
from kontext_fast.report.plots.dots import DotKind, DotPanel, DotRow, dot_picture
from kontext_fast.report.text.quality import finding
from kontext_fast.report.verification import VerificationReport
from kontext_fast.stats.bounds import mean_bounds
from kontext_fast.verify.comparisons import item_means

SECTION = "quality"
FILE = "quality/paired_differences.png"
TITLE = "Paired differences: scores of a preset minus those of baseline"


HOW = (
    "A diamond is the mean over items, its seeds averaged. The bar runs from the lower to the upper 95 % bound of the "
    "mean, each one-sided. A preset passes where its bar stays right of the left end of the green band, which is the "
    "margin. Controls are worse on purpose and have an axis of their own: a metric in which they do not fall is "
    "insensitive."
)


def plotted(report: VerificationReport) -> tuple[DotPanel, ...]:
    """A panel of the presets and one of the controls for every metric of quality that was measured."""
    analysis, arms = report.analysis, report.arms
    panels = []
    for metric in discover().values():
        if metric.role is not Role.QUALITY or not arms.measured(metric.name):
            continue
        reason = analysis.insensitive.get(metric.name)
        title = metric.title + (f" (insensitive here: {reason})" if reason else "")
        presets = [("preset", record.preset) for record in arms.presets]
        controls = [("floor", name) for name in arms.floors] + [("control", name) for name in arms.controls]
        for name, kinds, margin in (
            (title, presets, analysis.margins.primary.get(metric.name)),
            (f"{title}: controls", controls, None),
        ):
            rows = tuple(_rows(report, metric, kinds))
            if rows:
                axis = "difference from baseline; left of zero is worse"
                panels.append(DotPanel(name, axis, rows, margin=margin))
    return tuple(panels)


def _rows(report: VerificationReport, metric: type[Metric], kinds: Sequence[tuple[str, str]]) -> Iterator[DotRow]:
    for kind, name in kinds:
        values = item_means(report.arms.differences(metric, name))
        if len(values) >= 2:
            bounds = mean_bounds(values, report.analysis.margins.confidence, bounded=metric.bounded)
            yield DotRow(name, cast(DotKind, kind), tuple(values.tolist()), (float(bounds.lower), float(bounds.upper)))


def draw(report: VerificationReport) -> Chart:
    panels = plotted(report)
    takeaway = finding(report.analysis) if panels else "No metric of quality was measured."
    return Chart(
        title=TITLE,
        how_to_read=HOW,
        takeaway=takeaway,
        alt=f"Means with their bounds in {len(panels)} panels. {takeaway}",
        picture=dot_picture(takeaway, panels) if panels else None,
    )
