"""Our presets beside the best rival that does the same work: all steps, all steps in 8 bit, so many evaluations."""

from __future__ import annotations

from dataclasses import dataclass

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.names import group_name, plain_name
from kontext_fast.analysis.rows import Row
from kontext_fast.analysis.tiers import Tier, tiers
from kontext_fast.records.names import PEER_PREFIX, short_machine
from kontext_fast.records.schema import BASELINE
from kontext_fast.report.charting import Chart, not_drawn
from kontext_fast.report.model import Report
from kontext_fast.report.plots import style
from kontext_fast.report.plots.rows import PHONE_ROW_IN, Rows
from kontext_fast.report.plots.style import Canvas, Picture, Slot
from kontext_fast.report.text.phrases import provenance
from kontext_fast.stats.intervals import Estimate

SECTION = "like_for_like"
FILE = "performance/like_for_like.png"
TITLE = "Seconds per call, like against like"
HOW = (
    "Each block compares presets that do the same work: all steps in 16 bit, all steps in 8 bit, and as many "
    "evaluations of the transformer where steps are skipped or left out. Of other projects the fastest recipe of each "
    "block is shown. A star marks fewer than three processes, from which nothing is claimed."
)
GAP = 0.55
"""Between two blocks, in rows."""


@dataclass(frozen=True)
class LikeRow:
    preset: str
    time: Estimate
    factor: Estimate | None


@dataclass(frozen=True)
class LikeBlock:
    name: str
    rows: tuple[LikeRow, ...]
    """Slow to fast: baseline in the first block, the best rival, ours."""


@dataclass(frozen=True)
class LikePanel:
    title: str
    subtitle: str
    blocks: tuple[LikeBlock, ...]

    @property
    def rows(self) -> tuple[LikeRow, ...]:
        return tuple(row for block in self.blocks for row in block.rows)


def plotted(report: Report) -> LikePanel | None:
    """The blocks of the group that a report leads with, of those in which a rival was measured; None without one."""
    lead = report.lead
    if lead is None or not lead.group.runs:
        return None
    blocks = tuple(
        _block(lead.group, tier, first=number == 0) for number, tier in enumerate(tiers(lead.group)) if tier.best_rival
    )
    return LikePanel(group_name(lead.group), provenance([lead.group]), blocks) if blocks else None


def draw(report: Report) -> Chart:
    panel = plotted(report)
    if panel is None:
        return not_drawn(TITLE, HOW, "no recipe of another project was measured")
    takeaway = headline(report, panel)
    alt = f"Bars of seconds per call in {fmt.count(len(panel.blocks), 'block')} of the same work. {takeaway}"
    return Chart(TITLE, HOW, takeaway, alt, picture(takeaway, panel), source=panel.subtitle)


def headline(report: Report, panel: LikePanel) -> str:
    """How much shorter ours is in each block; where intervals overlap or are missing, both times and no claim."""
    ours = [(block.rows[-2], block.rows[-1]) for block in panel.blocks if len(block.rows) > 1]
    ahead = [fast for slow, fast in ours if _is_apart(slow, fast)]
    machine = short_machine(report.machine or "this machine")
    rivals = [row for row in panel.rows if row.preset.startswith(PEER_PREFIX)]
    if rivals and all(row.time.interval is None for row in rivals):
        return f"On {machine} the times of other recipes have no interval, so nothing is claimed against them."
    if not ahead:
        return f"On {machine} no block has two times whose intervals are apart."
    names = ", ".join(row.preset for row in ahead)
    verb = "is" if len(ahead) == 1 else "are"
    return f"At equal work on {machine}, {names} {verb} ahead of the fastest other recipe."


def _is_apart(slow: LikeRow, fast: LikeRow) -> bool:
    """Whether both intervals are known and do not touch."""
    if fast.preset.startswith(PEER_PREFIX) or slow.time.interval is None or fast.time.interval is None:
        return False
    return fast.time.interval[1] < slow.time.interval[0]


def _block(group: AnalyzedGroup, tier: Tier, *, first: bool) -> LikeBlock:
    rival = tier.best_rival
    baseline = group.row(BASELINE) if first else None
    shown = [row for row in (baseline, rival, *tier.ours) if row is not None and row.time]
    shown.sort(key=lambda row: -row.time.mean.value if row.time else 0.0)
    return LikeBlock(tier.name, tuple(map(_like_row, shown)))


def _like_row(row: Row) -> LikeRow:
    assert row.time is not None
    return LikeRow(row.preset, row.time.mean, row.factor)


def picture(words: str, panel: LikePanel) -> Picture:
    """Also the picture that README begins with."""

    def height_in(panel: LikePanel, canvas: Canvas) -> float:
        gaps = GAP * (len(panel.blocks) - 1) + (0.5 * len(panel.blocks) if canvas.narrow else 0)
        return (len(panel.rows) + gaps) * (PHONE_ROW_IN if canvas.narrow else 0.4) + style.FOOT_IN + 0.1

    return style.panels_picture(words, [panel], height_in, _draw, style.who(row.preset for row in panel.rows))


def _draw(slot: Slot, panel: LikePanel) -> None:
    names = [shown_name(row) for row in panel.rows]
    rows = Rows(slot, names, "seconds per call", right=0.985)
    words = [_words(row) for row in panel.rows]
    rows.room_for([(row.time.value, said) for row, said in zip(panel.rows, words, strict=True)])
    if not slot.canvas.narrow:
        rows.axes.set_xlim(0, rows.axes.get_xlim()[1] * 1.22)
    place, said = 0.0, iter(words)
    hits: list[tuple[float, LikeRow]] = []
    for number, block in enumerate(panel.blocks):
        if slot.canvas.narrow:
            rows.heading(place, block.name)
            place += 0.5
        top = place
        for row in block.rows:
            ours = row.preset != BASELINE and not row.preset.startswith(PEER_PREFIX)
            rows.name(place, shown_name(row), style.PRESET_COLOR if ours else style.INK, bold=ours)
            rows.bar(place, row.time.value, style.color_of(row.preset))
            rows.whisker(place, row.time.interval)
            rows.words(style.end_of(row.time.value, row.time.interval), place, next(said), bold=ours)
            hits.append((place, row))
            place += 1
        if not slot.canvas.narrow:
            rows.note((top + place - 1) / 2, block.name)
        place += GAP if number < len(panel.blocks) - 1 else 0
    rows.axes.set_ylim(place - 0.5, -0.5)
    for at, row in hits:
        rows.hit(at, f"{shown_name(row)}: {fmt.seconds_with_interval(row.time)}; {fmt.n_of(row.time)}", row.preset)


def shown_name(row: LikeRow) -> str:
    """A star marks too few processes for an interval."""
    return plain_name(row.preset) + ("*" if row.time.interval is None else "")


def _words(row: LikeRow) -> str:
    return fmt.seconds_estimate(row.time) + (f", {fmt.factor(row.factor)}" if row.factor else "")
