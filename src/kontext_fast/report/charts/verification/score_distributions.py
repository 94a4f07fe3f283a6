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
            rows, axis = _scores(arms, metric), "score of each output"
        panels.append(DotPanel(metric.title + stamp, axis, tuple(rows), log=metric.role is Role.FIDELITY))
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
    return Chart(
        title=TITLE,
        how_to_read=(
            "A dot is an output and the diamond is the median. Blue are presets; green is baseline against itself "
            "with nothing but rounding changed, the floor of every distance; orange are outputs made worse on purpose; "
            "gray is baseline, in distances to itself with another seed. Dots at the left edge are exactly zero."
        ),
        takeaway=finding(report.analysis) if panels else "Nothing was scored.",
        alt="; ".join(f"{panel.title}: {', '.join(row.label for row in panel.rows)}" for panel in panels),
        png=dot_picture(panels) if panels else None,
    )
