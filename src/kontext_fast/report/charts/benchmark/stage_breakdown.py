"""Where the time of a call goes: text encoding, VAE encoding, denoising, VAE decoding and the rest."""

from __future__ import annotations

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.names import group_name
from kontext_fast.analysis.ranking import leading_groups
from kontext_fast.analysis.rows import Row
from kontext_fast.analysis.stages import StageRow
from kontext_fast.analysis.tiers import shown_rows
from kontext_fast.records.schema import BASELINE
from kontext_fast.report.charting import Chart, not_drawn
from kontext_fast.report.model import Report
from kontext_fast.report.plots import style
from kontext_fast.report.plots.bars import Part, StackedPanel, StackedRow, stacked_picture
from kontext_fast.report.text.phrases import provenance

SECTION = "stages"
FILE = "performance/stage_breakdown.png"
TITLE = "Where the time of a call goes"
HOW = (
    "Each bar is one call, split into its stages; the parts are means over processes and add up to the whole. "
    "The whisker below a bar is the 95 % interval of the whole. "
    "Of other projects the fastest recipe at equal work is drawn; tables have them all."
)
NAMES = {
    "text_encode": "text encode",
    "vae_encode": "VAE encode",
    "denoise": "denoise",
    "vae_decode": "VAE decode",
}
REST = "rest"
COLORS = {
    NAMES["text_encode"]: style.PURPLE,
    NAMES["vae_encode"]: style.GREEN,
    NAMES["denoise"]: style.BLUE,
    NAMES["vae_decode"]: style.SKY,
    REST: style.GRAY,
}


def plotted(report: Report) -> tuple[StackedPanel, ...]:
    """A panel of the group that a report leads with, for each checkpoint and machine: the centre of a suite.

    Seconds, as means over processes.
    """
    return tuple(map(_panel, leading_groups(report.analysis)))


def draw(report: Report) -> Chart:
    panels = plotted(report)
    if not panels:
        return not_drawn(TITLE, HOW, "no call was measured")
    takeaway = " ".join(_takeaway(panel, alone=len(panels) == 1) for panel in panels)
    return Chart(
        title=TITLE,
        how_to_read=HOW,
        takeaway=takeaway,
        alt=f"Stacked bars of seconds per stage. {takeaway}",
        picture=stacked_picture(takeaway, panels, COLORS),
        source="; ".join(panel.subtitle for panel in panels),
    )


def _panel(group: AnalyzedGroup) -> StackedPanel:
    stages = {row.preset: row for row in group.stages}
    rows = tuple(_row(row, stages.get(row.preset)) for row in shown_rows(group))
    return StackedPanel(group_name(group), provenance([group]), rows)


def _row(row: Row, stages: StageRow | None) -> StackedRow:
    if row.time is None or stages is None:
        return StackedRow(row.preset, (), None, row.status_and_reason)
    parts = [Part(NAMES[stage], seconds) for stage, seconds in stages.stages.items()]
    return StackedRow(row.preset, (*parts, Part(REST, max(0.0, stages.rest))), row.time.mean)


def _takeaway(panel: StackedPanel, *, alone: bool) -> str:
    """Where baseline spends its time, which is what there is to gain, and where the fastest row does, which is left."""
    measured = [row for row in panel.rows if row.whole]
    first = next((row for row in measured if row.name == BASELINE), measured[0])
    last = min(measured, key=lambda row: row.whole.value if row.whole else 0.0)
    whole = " and ".join(_longest(row) for row in dict.fromkeys((first, last)))
    return f"{'' if alone else panel.title + ': '}{whole}."


def _longest(row: StackedRow) -> str:
    assert row.whole is not None
    shares = {part.name: part.seconds / row.whole.value for part in row.parts}
    longest = max(shares, key=lambda name: shares[name])
    return f"{longest} takes {fmt.percent(shares[longest])} of a call of {row.name}"
