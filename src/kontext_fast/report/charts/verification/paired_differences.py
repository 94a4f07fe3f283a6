"""Scores of a preset minus those of baseline for the same item, with bounds, margins and the controls for scale."""

from __future__ import annotations

from kontext_fast.metrics.base import Role, discover
from kontext_fast.report.charting import Chart
from kontext_fast.report.plots.dots import DotKind, DotPanel, DotRow, dot_picture
from kontext_fast.report.text.quality import finding
from kontext_fast.report.verification import VerificationReport
from kontext_fast.stats.bounds import mean_bounds
from kontext_fast.verify.comparisons import item_means

SECTION = "quality"
FILE = "quality/paired_differences.png"
TITLE = "Paired differences: scores of a preset minus those of baseline"


def plotted(report: VerificationReport) -> tuple[DotPanel, ...]:
    """One panel per metric of quality that was measured."""
    analysis, arms = report.analysis, report.arms
    panels = []
    for metric in discover().values():
        if metric.role is not Role.QUALITY or not arms.measured(metric.name):
            continue
        rows: list[DotRow] = []
        kinds: list[tuple[DotKind, str]] = [("preset", record.preset) for record in arms.presets]
        kinds += [("floor", name) for name in arms.floors] + [("control", name) for name in arms.controls]
        for kind, name in kinds:
            values = item_means(arms.differences(metric, name))
            if len(values) < 2:
                continue
            bounds = mean_bounds(values, analysis.margins.confidence, bounded=metric.bounded)
            rows.append(DotRow(name, kind, tuple(values.tolist()), (float(bounds.lower), float(bounds.upper))))
        if rows:
            reason = analysis.insensitive.get(metric.name)
            panels.append(
                DotPanel(
                    metric.title + (f" (insensitive here: {reason})" if reason else ""),
                    "difference from baseline per item; left of zero is worse",
                    tuple(rows),
                    margin=analysis.margins.primary.get(metric.name),
                )
            )
    return tuple(panels)


def draw(report: VerificationReport) -> Chart:
    panels = plotted(report)
    return Chart(
        title=TITLE,
        how_to_read=(
            "A dot is an item, its seeds averaged. The bar runs from the lower to the upper 95 % bound of the mean, "
            "each one-sided. A preset passes where its bar stays right of the left end of the green band, "
            "which is the margin. Controls are worse on purpose: a metric in which they do not fall is insensitive."
        ),
        takeaway=finding(report.analysis) if panels else "No metric of quality was measured.",
        alt="; ".join(f"{panel.title}: {', '.join(row.label for row in panel.rows)}" for panel in panels),
        png=dot_picture(panels) if panels else None,
    )
