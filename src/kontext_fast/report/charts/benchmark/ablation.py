"""What each optimization of a preset is worth: alone, and to the preset that has all the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.names import group_name
from kontext_fast.records.names import ONLY, WITHOUT, parse_ablation
from kontext_fast.records.schema import BASELINE
from kontext_fast.report.charting import Chart, not_drawn
from kontext_fast.report.model import Report
from kontext_fast.report.plots import style
from kontext_fast.report.plots.rows import Rows, rows_in
from kontext_fast.report.plots.style import Picture, Slot
from kontext_fast.report.text.phrases import provenance
from kontext_fast.stats.claims import SpeedClaim, speed_claim
from kontext_fast.stats.intervals import Estimate, ratio_interval

SECTION = "ablation"
FILE = "performance/ablation.png"
TITLE = "What each optimization of a preset is worth"
HOW = (
    "Alone: how many times as fast as baseline with only this optimization. Added last: how many times as fast the "
    "preset is with it as without it. Right of the line at 1 it helps, on a logarithmic scale; whiskers are 95 % "
    "intervals. Factors alone need not multiply to the whole."
)
How = Literal["alone", "added last", "all together"]
COLORS: dict[How, str] = {
    "alone": style.SKY,
    "added last": style.BLUE,
    "all together": style.INK,
}


@dataclass(frozen=True)
class AblationPoint:
    optimization: str
    """The preset's own name where all are together."""
    how: How
    factor: Estimate | None
    """alone: baseline over only this one; added last: the preset without it over the whole preset."""
    claim: SpeedClaim | None
    note: str | None
    """Why there is no factor."""


@dataclass(frozen=True)
class AblationPanel:
    title: str
    subtitle: str
    points: tuple[AblationPoint, ...]


def plotted(report: Report) -> tuple[AblationPanel, ...]:
    """One panel per preset that was taken apart and workload."""
    return tuple(
        _panel(group, preset)
        for group in report.analysis
        if group.runs
        for preset in dict.fromkeys(part.preset for part in map(parse_ablation, group.presets) if part)
    )


def draw(report: Report) -> Chart:
    panels = plotted(report)
    if not panels:
        return not_drawn(TITLE, HOW, "no preset was taken apart (suite ablation)")
    takeaway = " ".join(map(_takeaway, panels))
    return Chart(
        title=TITLE,
        how_to_read=HOW,
        takeaway=takeaway,
        alt=f"Points with intervals per optimization. {takeaway}",
        picture=_picture(takeaway, panels),
        source="; ".join(panel.subtitle for panel in panels),
    )


def _panel(group: AnalyzedGroup, preset: str) -> AblationPanel:
    parts = (part for part in map(parse_ablation, group.presets) if part and part.preset == preset)
    # As the preset applies them, whatever order the blocks were shuffled into.
    places = {step.name: place for place, step in enumerate(group.plans.get(preset, ()))}
    names = sorted(dict.fromkeys(part.optimization for part in parts), key=lambda name: places.get(name, len(places)))
    points = [_point(group, preset, "all together", BASELINE, preset)]
    for name in names:
        only, without = f"{preset}{ONLY}{name}", f"{preset}{WITHOUT}{name}"
        if only in group.presets:
            points.append(_point(group, name, "alone", BASELINE, only))
        if without in group.presets:
            points.append(_point(group, name, "added last", without, preset))
    return AblationPanel(f"{preset}: {group_name(group)}", provenance([group]), tuple(points))


def _point(group: AnalyzedGroup, name: str, how: How, slower: str, faster: str) -> AblationPoint:
    factor = ratio_interval(group.by_round(slower), group.by_round(faster), group.card_of_round)
    if factor is not None:
        return AblationPoint(name, how, factor, speed_claim(factor, group.smallest_claim), None)
    for preset in (slower, faster):
        if failures := group.failures_of(preset):
            return AblationPoint(name, how, None, None, f"{preset} {failures[0].status}: {failures[0].reason}")
    return AblationPoint(name, how, None, None, fmt.NOT_MEASURED)


def _takeaway(panel: AblationPanel) -> str:
    alone = [point for point in panel.points if point.how == "alone" and point.factor]
    nothing = [point.optimization for point in alone if point.claim == "no difference found"]
    helps = [point for point in alone if point.claim == "faster" and point.factor]
    sentences = []
    if helps:
        best = max(helps, key=lambda point: point.factor.value if point.factor else 0)
        assert best.factor is not None
        sentences.append(f"alone, {best.optimization} gains most ({fmt.factor(best.factor)})")
    if nothing:
        sentences.append(f"no effect was found of {', '.join(nothing)} alone")
    if not sentences:
        sentences.append("these runs support no claim, since they have no intervals or no A/A control")
    return f"{panel.title}: {'; '.join(sentences)}."


def _picture(takeaway: str, panels: Sequence[AblationPanel]) -> Picture:
    return style.panels_picture(
        takeaway, panels, lambda panel, canvas: rows_in(len(panel.points), canvas), _draw_panel,
        list(COLORS.items()),
    )  # fmt: skip


def _draw_panel(slot: Slot, panel: AblationPanel) -> None:
    names = [
        point.optimization if point.how == "all together" else f"{point.optimization}, {point.how}"
        for point in panel.points
    ]
    rows = Rows(slot, names, "times as fast")
    factors = [point.factor for point in panel.points if point.factor]
    style.factor_scale(
        rows.axes,
        (end for factor in factors for end in (factor.value, *(factor.interval or ()))),
        right=1.2 if slot.canvas.narrow else 0.5,
    )
    for number, point in enumerate(panel.points):
        rows.name(number, names[number])
        if point.factor is None:
            rows.failure(number, point.note or fmt.NOT_MEASURED)
            continue
        rows.whisker(number, point.factor.interval)
        rows.axes.plot([point.factor.value], [rows.middle(number)], "o", markersize=9, color=COLORS[point.how])
        words = fmt.factor(point.factor) if slot.canvas.narrow else fmt.factor_with_interval(point.factor)
        rows.words(style.end_of(point.factor.value, point.factor.interval), number, words)
    for number, point in enumerate(panel.points):
        said = point.note or fmt.NOT_MEASURED
        if point.factor is not None:
            said = f"{fmt.factor_with_interval(point.factor)}; {fmt.n_of(point.factor)}"
        rows.hit(number, f"{names[number]}: {said}")
