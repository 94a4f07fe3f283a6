"""Where the time of a call goes: text encoding, VAE encoding, denoising, VAE decoding and the rest."""

from __future__ import annotations

from pathlib import Path

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.groups import Group, groups
from kontext_fast.analysis.names import group_name
from kontext_fast.analysis.ranking import leading_groups, presets_slow_to_fast
from kontext_fast.analysis.rows import process_values
from kontext_fast.analysis.stages import StageRow, stage_rows
from kontext_fast.records.atomic import write_atomically
from kontext_fast.records.schema import BASELINE, ResultFile
from kontext_fast.report.charting import Chart
from kontext_fast.report.plots import style
from kontext_fast.report.plots.stacked import Part, StackedPanel, StackedRow, picture
from kontext_fast.report.text.phrases import provenance
from kontext_fast.stats.intervals import mean_estimate

SECTION = "speed"
FILE = Path("performance") / "stage_breakdown.png"
TITLE = "Where the time of a call goes"
NAMES = {
    "text_encode": "text encode",
    "vae_encode": "VAE encode",
    "denoise": "denoise",
    "vae_decode": "VAE decode",
}
REST = "rest"
COLORS = {
    NAMES["text_encode"]: style.COLORS[1],
    NAMES["vae_encode"]: style.COLORS[2],
    NAMES["denoise"]: style.COLORS[0],
    NAMES["vae_decode"]: style.COLORS[3],
    REST: style.GRAY,
}


def plotted(result: ResultFile) -> tuple[StackedPanel, ...]:
    """Of each checkpoint and machine the group that a report leads with: the centre of a suite.

    Seconds, as means over processes.
    """
    return tuple(_panel(group) for group in leading_groups(groups(result)))


def draw(result: ResultFile, folder: Path) -> Chart:
    """Write the picture below `folder`; without any time an earlier picture is removed and none is drawn."""
    panels = plotted(result)
    path = folder / FILE
    if panels:
        write_atomically(path, picture(panels, COLORS))
    else:
        path.unlink(missing_ok=True)
    takeaway = " ".join(_takeaway(panel) for panel in panels) or "Not drawn: no call was measured."
    return Chart(
        path=path if panels else None,
        title=TITLE,
        how_to_read=(
            "Each bar is one call, split into its stages; the parts are means over processes and add up to the whole. "
            "The whisker below a bar is the 95 % interval of the whole."
        ),
        takeaway=takeaway,
        alt=f"Stacked bars of seconds per stage. {takeaway}",
    )


def _panel(group: Group) -> StackedPanel:
    rows = {row.preset: row for row in stage_rows(group)}
    return StackedPanel(
        group_name(group),
        provenance([group]),
        tuple(_row(group, preset, rows.get(preset)) for preset in presets_slow_to_fast(group)),
    )


def _row(group: Group, preset: str, row: StageRow | None) -> StackedRow:
    if row is None:
        failures = group.failures_of(preset)
        note = f"{failures[0].status}: {failures[0].reason}" if failures else fmt.NOT_MEASURED
        return StackedRow(preset, (), None, note)
    parts = [Part(NAMES[stage], seconds) for stage, seconds in row.stages.items()]
    whole = mean_estimate(process_values(group.runs_of(preset)))
    return StackedRow(preset, (*parts, Part(REST, max(0.0, row.rest))), whole)


def _takeaway(panel: StackedPanel) -> str:
    """Of baseline where it was measured: that is what there is to gain."""
    measured = [row for row in panel.rows if row.whole]
    row = next((row for row in measured if row.name == BASELINE), measured[0])
    assert row.whole is not None
    shares = {part.name: part.seconds / row.whole.value for part in row.parts}
    longest = max(shares, key=lambda name: shares[name])
    return f"{panel.title}: {longest} takes {fmt.percent(shares[longest])} of a call of {row.name}."
