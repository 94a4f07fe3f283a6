"""The page of a verification: verdicts, controls, charts and pictures, as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from kontext_fast.errors import InvalidInput
from kontext_fast.metrics.base import Control
from kontext_fast.records.atomic import write_atomically
from kontext_fast.records.names import machine_name
from kontext_fast.records.schema import ResultFile
from kontext_fast.records.store import ResultStore
from kontext_fast.report import format as write
from kontext_fast.report import frontier_words
from kontext_fast.report import quality_words as words
from kontext_fast.report.charting import Chart
from kontext_fast.report.charts import quality_frontier, quality_paired_differences, quality_score_distributions
from kontext_fast.report.images import chart_uri
from kontext_fast.report.notes import checkpoint_caution
from kontext_fast.report.quality_cards import GAIN, SHOWN, Card, arbitrary, cards, worst
from kontext_fast.verify.analysis import PresetVerdict, VerificationAnalysis, analyze
from kontext_fast.verify.controls import POSITIVE, Sighting
from kontext_fast.verify.frontier import frontier

PAGE = Path("visualizations") / "quality" / "index.html"


@dataclass(frozen=True)
class Section:
    """One preset as the page shows it."""

    one: PresetVerdict
    computed: str
    worst: tuple[Card, ...]
    random: tuple[Card, ...]


def write_quality_page(records: Path, out: Path | None = None) -> Path:
    """Draw the charts and write the page of a verification below `out`, or beside its records; returns the page.

    Raises InvalidInput where `records` are of no verification or the page cannot be written.
    """
    store = ResultStore.find(records)
    result = store.load()
    found = analyze(result)
    folder = store.folder if out is None else out
    page = folder / PAGE
    try:
        charts = [
            module.draw(result, folder / "visualizations")
            for module in (quality_paired_differences, quality_score_distributions, quality_frontier)
        ]
        write_atomically(page, render(result, found, store, charts).encode())
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidInput(f"The page cannot be written to {folder} ({reason}); choose another folder.") from error
    return page


def render(result: ResultFile, found: VerificationAnalysis, store: ResultStore, charts: Sequence[Chart]) -> str:
    """The page as text. Pictures are read from `store`."""
    environment = Environment(
        loader=PackageLoader("kontext_fast.report", "template"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals.update(
        write=write, words=words, frontier_words=frontier_words, chart_uri=chart_uri, gain=GAIN, shown=SHOWN
    )
    controls = [control.value for control in Control] + list(POSITIVE)
    return environment.get_template("quality.html.j2").render(
        result=result,
        found=found,
        sections=[_section(one, found, result, store) for one in found.presets],
        charts=[chart for chart in charts if chart.title != quality_frontier.TITLE],
        frontier=frontier(result, found),
        frontier_charts=[chart for chart in charts if chart.title == quality_frontier.TITLE],
        facts=_facts(result, found),
        caution=next((checkpoint_caution(record.checkpoint) for record in result.records if record.checkpoint), None),
        controls=controls,
        sightings=_by_metric(found.sightings),
        failed=[record for record in result.records if record.status != "ok"],
        lost=_lost(result),
    )


def _section(one: PresetVerdict, found: VerificationAnalysis, result: ResultFile, store: ResultStore) -> Section:
    outputs = [
        output
        for record in result.records
        if record.arm and record.arm.name == one.preset
        for output in record.outputs
        if output.image
    ]
    ranked = worst(one, found)
    by_chance = arbitrary(sorted({output.item for output in outputs}), result.seed)
    return Section(
        one=one,
        computed=words.computed_share(one, [output.step_kinds for output in outputs if output.step_kinds]),
        worst=tuple(cards(ranked, one, found, result, store)),
        random=tuple(cards(by_chance, one, found, result, store)),
    )


def _facts(result: ResultFile, found: VerificationAnalysis) -> list[tuple[str, str]]:
    verification = found.verification
    record = result.records[0] if result.records else None
    checkpoint = record.checkpoint if record else None
    return [
        ("Date", write.date(record.created_at) if record else write.NOT_MEASURED),
        ("Checkpoint", f"{checkpoint.name}, {checkpoint.dtype}" if checkpoint else write.NOT_MEASURED),
        ("Machine", (machine_name(record.environment) if record else None) or "unknown"),
        ("Items", f"{len(result.items)} of {verification.dataset}, {len(verification.seeds)} seeds each"),
        ("Controls", write.count(len(verification.control_items), "item")),
        ("Steps", f"{verification.steps}, guidance {verification.guidance:g}, batch {verification.batch}"),
        ("Margins", f"sha256 {verification.margins_sha256[:12]}"),
        ("Version", f"kontext-fast {result.kontext_fast_version}"),
    ]


def _by_metric(sightings: Sequence[Sighting]) -> dict[str, dict[str, Sighting]]:
    found: dict[str, dict[str, Sighting]] = {}
    for sighting in sightings:
        found.setdefault(sighting.metric, {})[sighting.control] = sighting
    return found


def _lost(result: ResultFile) -> list[tuple[str, str, int, str]]:
    """Arm, item, seed and reason of every single output that failed, if only at the first attempt."""
    return [
        (record.arm.name, output.item, output.seed, output.failure or "")
        for record in result.records
        if record.arm
        for output in record.outputs
        if output.failure or not output.image
    ]
