"""The page of a verification: verdicts, controls, charts and images, as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kontext_fast.analysis import format as fmt
from kontext_fast.errors import InvalidInput
from kontext_fast.metrics.base import Control
from kontext_fast.records.names import machine_name
from kontext_fast.records.schema import ResultFile
from kontext_fast.records.store import ResultStore, write_atomically
from kontext_fast.report import templates
from kontext_fast.report.charting import Chart, write_verification_charts
from kontext_fast.report.environment import Fact
from kontext_fast.report.output import page
from kontext_fast.report.output.item_cards import GAIN, ItemCard, arbitrary, item_cards, worst
from kontext_fast.report.output.publish import QUALITY_PAGE
from kontext_fast.report.text import quality as words
from kontext_fast.report.verification import VerificationReport, build_verification_report
from kontext_fast.verify.analysis import PresetAnalysis, VerificationAnalysis
from kontext_fast.verify.comparisons import FloorComparison, MarginComparison, Outcome, SeedNoiseComparison
from kontext_fast.verify.controls import NO_LOSS_ARMS, ControlCheck
from kontext_fast.verify.findings import changes_sentence
from kontext_fast.verify.verdict import Level

SCRIPTS = ("page.js", "quality.js")


@dataclass(frozen=True)
class MatrixCell:
    value: str
    compared: str
    """What with: the margin, the seed noise, the rounding floor."""
    outcome: Outcome | None
    """None where nothing was decided by this metric."""

    @property
    def chip(self) -> str:
        """The class of its colour."""
        return {Outcome.PASSED: "yes", Outcome.FAILED: "no"}.get(self.outcome, "") if self.outcome else ""


@dataclass(frozen=True)
class MatrixRow:
    preset: str
    level: Level
    reason: str
    cells: tuple[MatrixCell | None, ...]
    """One per metric of the matrix; None where the metric has no part in the verdict."""


@dataclass(frozen=True)
class Matrix:
    """Verdicts at a glance: presets down, metrics across, in each cell how a preset compares with what is allowed."""

    metrics: tuple[str, ...]
    rows: tuple[MatrixRow, ...]


@dataclass(frozen=True)
class PresetSection:
    """One preset as the page shows it."""

    preset: PresetAnalysis
    computed: str
    changes: str | None
    """What changed on average."""
    worst: tuple[ItemCard, ...]
    random: tuple[ItemCard, ...]


def write_quality_page(records: Path, out: Path | None = None) -> Path:
    """Draw the charts and write the page of a verification below `out`, or beside its records; returns the page.

    Raises InvalidInput where `records` are of no verification or the page cannot be written.
    """
    store = ResultStore.find(records)
    return write_page(build_verification_report(store.load()), store, store.folder if out is None else out)


def write_page(report: VerificationReport, store: ResultStore, folder: Path) -> Path:
    """Do as `write_quality_page`, with records that were read already."""
    file = folder / QUALITY_PAGE
    try:
        charts = write_verification_charts(report, folder / "visualizations")
        write_atomically(file, render(report, charts, store).encode())
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidInput(f"The page cannot be written to {folder} ({reason}); choose another folder.") from error
    return file


def render(report: VerificationReport, charts: Sequence[Chart], store: ResultStore) -> str:
    """The page as text. Pictures are read from `store`."""
    result, analysis = report.result, report.analysis
    presets = [_section(preset, report, store) for preset in analysis.presets]
    cards = [card for section in presets for card in (*section.worst, *section.random)]
    script = page.script(SCRIPTS)
    return templates.render(
        "quality.html.j2",
        result=result,
        analysis=analysis,
        matrix=_matrix(analysis),
        newer=report.newer,
        frontier=report.frontier,
        presets=presets,
        cards=cards,
        kinds=sorted({card.item.kind for card in cards if card.item.kind}),
        orders=tuple(dict.fromkeys(score.metric for card in cards for score in card.scores)),
        shown_first=_shown_first(presets),
        **page.chart_context(charts),
        facts=_facts(report),
        caution=next((record.checkpoint.caution for record in result.records if record.checkpoint), None),
        controls=[control.value for control in Control] + list(NO_LOSS_ARMS),
        control_checks=_by_metric(analysis.control_checks),
        failed=[record for record in result.records if record.status != "ok"],
        lost=_lost(result),
        words=words,
        gain=GAIN,
        script=script,
        script_hash=page.script_hash(script),
    )


def _matrix(analysis: VerificationAnalysis) -> Matrix:
    """A row for every preset, with the primary metrics first and the distances to baseline after them."""
    verdicts = [preset.verdict for preset in analysis.presets]
    primary = [loss.metric for verdict in verdicts for loss in verdict.losses]
    distances = [floor.metric for verdict in verdicts for floor in verdict.floor]
    metrics = tuple(dict.fromkeys((*primary, *distances)))
    return Matrix(metrics, tuple(_row(preset, metrics) for preset in analysis.presets))


def _row(preset: PresetAnalysis, metrics: Sequence[str]) -> MatrixRow:
    verdict = preset.verdict
    cells = {floor.metric: _of_floor(floor) for floor in verdict.floor}
    cells |= {noise.metric: _of_seed_noise(noise) for noise in verdict.seed_noise}
    cells |= {loss.metric: _of_margin(loss) for loss in verdict.losses}
    return MatrixRow(preset.preset, verdict.level, verdict.reason, tuple(map(cells.get, metrics)))


def _of_margin(loss: MarginComparison) -> MatrixCell:
    return MatrixCell(
        words.change(loss.metric, loss.mean), f"margin {words.change(loss.metric, -loss.margin)}", loss.outcome
    )


def _of_seed_noise(noise: SeedNoiseComparison) -> MatrixCell:
    return MatrixCell(f"{100 * noise.median:.0f} %", "of seed noise", noise.outcome)


def _of_floor(floor: FloorComparison) -> MatrixCell:
    return MatrixCell(words.times(floor.ratio.value), "of the rounding floor", floor.outcome)


def _shown_first(presets: Sequence[PresetSection]) -> str:
    """The preset whose images a reader sees first: one with a loss, else the one that is farthest from baseline."""
    lossy = [section for section in presets if not section.preset.verdict.level.passes]
    chosen = max(lossy or presets, key=_largest_distance, default=None)
    return chosen.preset.preset if chosen else ""


def _largest_distance(section: PresetSection) -> float:
    return max((floor.ratio.value for floor in section.preset.verdict.floor), default=0.0)


def _section(preset: PresetAnalysis, report: VerificationReport, store: ResultStore) -> PresetSection:
    outputs = [
        output
        for record in report.arms.presets
        if record.preset == preset.preset
        for output in record.outputs
        if output.image
    ]
    by_chance = arbitrary(sorted({output.item for output in outputs}), report.result.seed)
    return PresetSection(
        preset=preset,
        computed=words.computed_share([output.step_kinds for output in outputs if output.step_kinds]),
        changes=changes_sentence(preset.verdict.changes),
        worst=tuple(item_cards(worst(preset, report.analysis), preset, report, store)),
        random=tuple(item_cards(by_chance, preset, report, store)),
    )


def _facts(report: VerificationReport) -> list[Fact]:
    result, verification = report.result, report.analysis.verification
    record = result.records[0] if result.records else None
    checkpoint = record.checkpoint if record else None
    return [
        Fact("Date", fmt.date(record.created_at) if record else fmt.NOT_MEASURED),
        Fact("Checkpoint", f"{checkpoint.name}, {checkpoint.dtype}" if checkpoint else fmt.NOT_MEASURED),
        Fact("Machine", (machine_name(record.environment) if record else None) or "unknown"),
        Fact("Items", f"{len(result.items)} of {verification.dataset}, {len(verification.seeds)} seeds each"),
        Fact("Controls", fmt.count(len(verification.control_items), "item")),
        Fact("Steps", f"{verification.steps}, guidance {verification.guidance:g}, batch {verification.batch}"),
        Fact("Margins", f"sha256 {verification.margins_sha256[:12]}"),
        Fact("Version", f"kontext-fast {result.kontext_fast_version}"),
    ]


def _by_metric(control_checks: Sequence[ControlCheck]) -> dict[str, dict[str, ControlCheck]]:
    by_metric: dict[str, dict[str, ControlCheck]] = {}
    for check in control_checks:
        by_metric.setdefault(check.metric, {})[check.control] = check
    return by_metric


def _lost(result: ResultFile) -> list[tuple[str, str, int, str]]:
    """Arm, item, seed and reason of every single output that failed, if only at the first attempt."""
    return [
        (record.arm.name, output.item, output.seed, output.failure or "")
        for record in result.records
        if record.arm
        for output in record.outputs
        if output.failure or not output.image
    ]
