"""How far every arm's outputs are from baseline's, and which scores they get: whole distributions, no means alone."""

from __future__ import annotations

from collections.abc import Iterable

from kontext_fast.metrics.base import Metric, Role, discover
from kontext_fast.report.charting import Chart
from kontext_fast.report.plots.dots import DotKind, DotPanel, DotRow, dot_picture
from kontext_fast.report.text.quality import finding
from kontext_fast.report.verification import VerificationReport
from kontext_fast.verify.analysis import ArmScores

SECTION = "quality"
FILE = "quality/score_distributions.png"
TITLE = "Distances to baseline, and scores, of every output"

HOW = (
    "The diamond is the median of all outputs, the thick bar holds half of them and the thin line nine in ten. What is "
    "either right or wrong is a share with its 95 % interval. Green is baseline against itself with nothing but "
    "rounding changed, the floor of every distance. Lines that reach the left edge begin at exactly zero."
)


def plotted(report: VerificationReport) -> tuple[DotPanel, ...]:
    """Panels of fidelity first."""
    insensitive, arms = report.analysis.insensitive, report.arms
    metrics = sorted(discover().values(), key=lambda metric: metric.role is not Role.FIDELITY)
    panels = []
    for metric in metrics:
        if not arms.measured(metric.name):
            continue
        stamp = f" (insensitive here: {insensitive[metric.name]})" if metric.name in insensitive else ""
        if metric.role is Role.FIDELITY:
            rows, axis = _distances(arms, metric), f"distance to baseline by {metric.name}, logarithmic"
        else:
            rows, axis = _scores(arms, metric), "share of outputs" if metric.bounded else "score of each output"
        is_distance = metric.role is Role.FIDELITY
        rates = metric.bounded and not is_distance
        panels.append(DotPanel(metric.title + stamp, axis, tuple(rows), log=is_distance, rates=rates))
    return tuple(panel for panel in panels if any(value > 0 for row in panel.rows for value in row.values))


def _arms(arms: ArmScores) -> Iterable[tuple[DotKind, str]]:
    yield from (("preset", record.preset) for record in arms.presets)
    yield from (("floor", name) for name in arms.floors)
    yield from (("control", name) for name in arms.controls)


def _distances(arms: ArmScores, metric: type[Metric]) -> list[DotRow]:
    rows = [
        DotRow(name, kind, values)
        for kind, name in _arms(arms)
        if (values := tuple(v for of_item in arms.distances(metric, name).values() for v in of_item))
    ]
    between = tuple(v for of_item in arms.fidelity(metric).between_seeds.values() for v in of_item)
    return [*rows, DotRow("another seed", "baseline", between)] if between else rows


def _scores(arms: ArmScores, metric: type[Metric]) -> list[DotRow]:
    baseline: list[tuple[DotKind, str]] = [("baseline", arms.baseline.preset)] if arms.baseline else []
    return [
        DotRow(name, kind, values)
        for kind, name in [*baseline, *_arms(arms)]
        if (values := tuple(arms.scores(name, metric.name).values()))
    ]


def draw(report: VerificationReport) -> Chart:
    panels = plotted(report)
    takeaway = finding(report.analysis) if panels else "Nothing was scored."
    return Chart(
        title=TITLE,
        how_to_read=HOW,
        takeaway=takeaway,
        alt=f"Distributions in {len(panels)} panels. {takeaway}",
        picture=dot_picture(takeaway, panels) if panels else None,
    )
