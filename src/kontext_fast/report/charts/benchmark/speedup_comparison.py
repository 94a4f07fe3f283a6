"""Times on the left, factors against baseline on the right, one pair of panels per workload.

Sweeps have charts of their own, and so do the parts of a preset; here is where most presets are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.groups import Group
from kontext_fast.analysis.names import group_name
from kontext_fast.analysis.rows import Row
from kontext_fast.records.names import parse_ablation
from kontext_fast.records.schema import CONTROL
from kontext_fast.report.charting import Chart
from kontext_fast.report.model import Report
from kontext_fast.report.plots.bars import SpeedBar, SpeedPanel, speed_picture
from kontext_fast.report.text.phrases import provenance, speed_finding
from kontext_fast.report.verification import Verdicts
from kontext_fast.stats.intervals import Estimate

SECTION = "speed"
FILE = "performance/speedup_comparison.png"
TITLE = "Time per call, and how many times as fast as baseline"
MOST_PANELS = 3


def plotted(report: Report) -> tuple[SpeedPanel, ...]:
    """The data of the picture: the group that a report leads with, then those that compare most presets."""
    measured = _measured(report)
    # Stable, so that of equals the first measured one is shown.
    others = sorted(measured[1:], key=lambda group: -len(_shown(group)))
    return tuple(_panel(group, report.verdicts) for group in [*measured[:1], *others][:MOST_PANELS])


def draw(report: Report) -> Chart:
    panels = plotted(report)
    left_out = len(_measured(report)) - len(panels)
    more = f" {fmt.count(left_out, 'other workload')} are in the tables." if left_out > 0 else ""
    return Chart(
        title=TITLE,
        how_to_read=(
            "Left: the mean wall time of one call (image in, image out), shorter is better; dots are single processes. "
            "Right: baseline's time over the preset's, paired by round; right of the line at 1 is faster, "
            "on a logarithmic scale. "
            "Whiskers are 95 % intervals over processes; a preset is faster only where its whisker stays right of 1. "
            "Gray is baseline, blue are presets of kontext-fast, orange are recipes of other projects."
        ),
        takeaway=_takeaway(panels) + more,
        alt=_spoken(panels),
        png=speed_picture(panels) if panels else None,
    )


def _measured(report: Report) -> list[AnalyzedGroup]:
    return [group.group for group in report.groups if group.group.runs]


def _shown(group: Group) -> list[str]:
    """Presets with a time, but for the parts of one."""
    return list(dict.fromkeys(run.record.preset for run in group.runs if parse_ablation(run.record.preset) is None))


def _panel(group: AnalyzedGroup, verdicts: Verdicts) -> SpeedPanel:
    rows = [row for row in group.ranked if parse_ablation(row.preset) is None]
    finding = speed_finding(rows, group.smallest_claim, verdicts)
    return SpeedPanel(group_name(group), provenance([group]), tuple(map(_bar, rows)), finding)


def _bar(row: Row) -> SpeedBar:
    return SpeedBar(
        preset=row.preset,
        time=row.time.mean if row.time else None,
        processes=row.time.values if row.time else (),
        factor=row.factor,
        note=row.factor_note if row.time else row.status_and_reason,
    )


def _takeaway(panels: Sequence[SpeedPanel]) -> str:
    """The finding of the leading panel, and how far the factors of presets reach in the others."""
    if not panels:
        return ""
    first = _leading(panels)
    others = [panel for panel in panels if panel is not first]
    if not others:
        return first.finding
    factors: dict[str, list[Estimate]] = {}
    for bar in (bar for panel in others for bar in panel.bars):
        if bar.factor is not None and bar.preset != CONTROL:
            factors.setdefault(bar.preset, []).append(bar.factor)
    reach = "; ".join(f"{preset} {_reach(estimates)} as fast" for preset, estimates in factors.items())
    elsewhere = f" In {fmt.count(len(others), 'other workload')}: {reach}." if reach else ""
    return f"{first.title}: {first.finding}{elsewhere}"


def _reach(factors: Sequence[Estimate]) -> str:
    low, high = (pick(factors, key=lambda factor: factor.value) for pick in (min, max))
    return " to ".join(dict.fromkeys((fmt.factor(low), fmt.factor(high))))


def _spoken(panels: Sequence[SpeedPanel]) -> str:
    """The leading panel in full; the numbers of the others are in the tables of the report."""
    if not panels:
        return ""
    panel = _leading(panels)
    parts = []
    for bar in panel.bars:
        if bar.time is None:
            parts.append(f"{bar.preset} {(bar.note or '').removesuffix('.')}")
        else:
            factor = f", {fmt.factor(bar.factor)} as fast as baseline" if bar.factor else ""
            parts.append(f"{bar.preset} {fmt.seconds_estimate(bar.time)}{factor}")
    others = f" So for {fmt.count(len(panels) - 1, 'other workload')}." if len(panels) > 1 else ""
    return f"Bars of time per call and points of factors for {panel.title}: {'; '.join(parts)}.{others}"


def _leading(panels: Sequence[SpeedPanel]) -> SpeedPanel:
    """The one that compares most."""
    return max(panels, key=lambda panel: sum(bar.factor is not None for bar in panel.bars))
