"""Times on the left, factors against baseline on the right, of every preset at the workload that a report leads with.

Sweeps have charts of their own, and so do the parts of a preset.
"""

from __future__ import annotations

from collections.abc import Sequence

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.names import group_name
from kontext_fast.analysis.rows import Row
from kontext_fast.analysis.tiers import may_claim
from kontext_fast.records.names import parse_ablation
from kontext_fast.records.schema import BASELINE, CONTROL
from kontext_fast.report.charting import Chart, not_drawn
from kontext_fast.report.model import Report
from kontext_fast.report.plots.bars import SpeedBar, SpeedPanel, speed_picture
from kontext_fast.report.text.phrases import fastest, provenance, speed_finding
from kontext_fast.report.verification import Verdicts
from kontext_fast.stats.intervals import Estimate

SECTION = "speed"
FILE = "performance/speedup_comparison.png"
TITLE = "Time per call, and how many times as fast as baseline"
HOW = (
    "Left: the mean wall time of one call (image in, image out), shorter is better. Right: baseline's time over the "
    "preset's, paired by round; right of the line at 1 is faster, on a logarithmic scale. Whiskers are 95 % intervals "
    "over processes; a preset is faster only where its whisker stays right of 1. Pale rows carry no claim: they ran in "
    "fewer than three processes, or skip by data where the data are random."
)


def plotted(report: Report) -> tuple[SpeedPanel, ...]:
    """The data of the picture: the group that a report leads with."""
    return tuple(_panel(group.group, report.verdicts) for group in report.groups[:1] if group.group.runs)


def draw(report: Report) -> Chart:
    panels = plotted(report)
    if not panels:
        return not_drawn(TITLE, HOW, "no call was measured")
    (panel,) = panels
    takeaway = _headline(report) + _elsewhere(report)
    alt = f"Bars of time per call and points of factors of {fmt.count(len(panel.bars), 'preset')}. {takeaway}"
    return Chart(TITLE, HOW, takeaway, alt, speed_picture(takeaway, panels), source=panel.subtitle)


def _headline(report: Report) -> str:
    """What the fastest preset takes of baseline's time, where it may be called faster."""
    assert report.lead is not None
    group, rows = report.lead.group, _shown(report.lead.group)
    best, baseline = fastest(rows, group.smallest_claim), group.row(BASELINE)
    if best is None or best.time is None or best.factor is None or baseline is None or baseline.time is None:
        return speed_finding(rows, group.smallest_claim)
    return (
        f"{best.preset} takes {fmt.seconds_estimate(best.time.mean)} where baseline takes "
        f"{fmt.seconds_estimate(baseline.time.mean)}: {fmt.factor_with_interval(best.factor)} as fast."
    )


def _elsewhere(report: Report) -> str:
    """How far the factors of the same preset reach at the other workloads of this machine."""
    assert report.lead is not None
    best = fastest(_shown(report.lead.group), report.lead.group.smallest_claim)
    others = [group.group.row(best.preset) for group in report.groups[1:]] if best else []
    factors = [row.factor for row in others if row and row.factor]
    if not factors:
        return ""
    return f" At {fmt.count(len(factors), 'other workload')} it is {_reach(factors)} as fast."


def _reach(factors: Sequence[Estimate]) -> str:
    low, high = (pick(factors, key=lambda factor: factor.value) for pick in (min, max))
    return " to ".join(dict.fromkeys((fmt.factor(low), fmt.factor(high))))


def _shown(group: AnalyzedGroup) -> list[Row]:
    """All but the parts of a preset."""
    return [row for row in group.ranked if parse_ablation(row.preset) is None]


def _panel(group: AnalyzedGroup, verdicts: Verdicts) -> SpeedPanel:
    rows = _shown(group)
    finding = speed_finding(rows, group.smallest_claim, verdicts)
    return SpeedPanel(group_name(group), provenance([group]), tuple(map(_bar, rows)), finding)


def _bar(row: Row) -> SpeedBar:
    return SpeedBar(
        preset=row.preset,
        time=row.time.mean if row.time else None,
        processes=row.time.values if row.time else (),
        factor=row.factor,
        note=row.factor_note if row.time else row.status_and_reason,
        claims=may_claim(row) or row.preset in (BASELINE, CONTROL) or row.time is None,
    )
