"""The page of a verification: verdicts, controls, charts and images, as one self-contained HTML file."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from kontext_fast.analysis import format as fmt
from kontext_fast.errors import InvalidInput
from kontext_fast.metrics.base import Control
from kontext_fast.records.atomic import write_atomically
from kontext_fast.records.names import machine_name
from kontext_fast.records.schema import Record, ResultFile, StoredItem
from kontext_fast.records.store import ResultStore
from kontext_fast.report.charting import Chart
from kontext_fast.report.charts import quality_frontier, quality_paired_differences, quality_score_distributions
from kontext_fast.report.output.page import MOST_PIXELS, chart_uri, data_uri
from kontext_fast.report.text import frontier as frontier_words
from kontext_fast.report.text import quality as words
from kontext_fast.report.text.quality import change, title
from kontext_fast.verify.analysis import PresetVerdict, VerificationAnalysis, analyze
from kontext_fast.verify.comparisons import ByItem
from kontext_fast.verify.controls import POSITIVE, Sighting
from kontext_fast.verify.frontier import frontier

SHOWN = 12
"""Of the worst items, and of random ones."""
GAIN = 4
"""How much stronger a map draws a difference than it is."""


@dataclass(frozen=True)
class Card:
    """One item: baseline and preset to slide between, where they differ, the input and the target; data URIs."""

    item: StoredItem
    seed: int
    notes: tuple[str, ...]
    source: str | None
    target: str | None
    baseline: str | None
    preset: str | None
    difference: str | None
    width: int
    height: int


def worst(one: PresetVerdict, found: VerificationAnalysis) -> list[str]:
    """Items that lost most, in units of the margins, and among equals the ones farthest from baseline."""
    if one.evidence is None:
        return []
    losses: dict[str, float] = {}
    for quality in one.evidence.quality:
        margin = found.margins.primary.get(quality.metric)
        if margin is None or quality.metric in found.blind:
            continue
        for item, values in quality.differences.items():
            losses[item] = min(losses.get(item, 0.0), float(np.mean(values)) / margin)
    distances = _distances(one, found)
    return sorted(distances.keys() | losses.keys(), key=lambda item: (losses.get(item, 0.0), -distances.get(item, 0.0)))


def arbitrary(items: Sequence[str], seed: int) -> list[str]:
    """Items in an order that looks at no result."""
    return random.Random(seed).sample(sorted(items), len(items))


def cards(
    items: Sequence[str], one: PresetVerdict, found: VerificationAnalysis, result: ResultFile, store: ResultStore
) -> list[Card]:
    """At most `SHOWN` of `items` in their order; those whose pictures are missing are left out."""
    by_id = {item.id: item for item in result.items}
    records = {record.arm.name: record for record in result.records if record.arm}
    baseline = next((record for record in records.values() if record.arm and record.arm.role == "baseline"), None)
    preset = records.get(one.preset)
    if baseline is None or preset is None:
        return []
    made = []
    for item in items:
        if item in by_id and (card := _card(by_id[item], one, found, baseline, preset, store)) is not None:
            made.append(card)
        if len(made) == SHOWN:
            break
    return made


def _card(
    item: StoredItem,
    one: PresetVerdict,
    found: VerificationAnalysis,
    baseline: Record,
    preset: Record,
    store: ResultStore,
) -> Card | None:
    before, after = _images(baseline, item.id), _images(preset, item.id)
    seeds = sorted(before.keys() & after.keys())
    if not seeds:
        return None
    seed = max(seeds, key=lambda seed: _apart(store, before[seed], after[seed]))
    pictures = [_opened(store, digest) for digest in (before[seed], after[seed])]
    if any(picture is None for picture in pictures):
        return None
    first, second = (picture for picture in pictures if picture is not None)
    return Card(
        item=item,
        seed=seed,
        notes=_notes(item.id, one, found),
        source=data_uri(store.image_path(item.image)) if item.image else None,
        target=data_uri(store.image_path(item.target)) if item.target else None,
        baseline=data_uri(store.image_path(before[seed])),
        preset=data_uri(store.image_path(after[seed])),
        difference=_difference_uri(first, second),
        width=first.width,
        height=first.height,
    )


def difference_map(first: Image.Image, second: Image.Image) -> Image.Image:
    """Black where two pictures of one size agree, over orange to white where they differ by 1 / `GAIN` or more."""
    apart = np.abs(np.asarray(first, np.float64) - np.asarray(second, np.float64)).mean(-1) / 255
    heat = np.clip(apart * GAIN, 0, 1)
    channels = [np.clip(heat * 3 - start, 0, 1) for start in (0.0, 0.9, 2.0)]
    return Image.fromarray((255 * np.stack(channels, axis=-1)).round().astype(np.uint8))


def _difference_uri(first: Image.Image, second: Image.Image) -> str | None:
    if first.size != second.size:
        return None
    drawn = difference_map(first, second)
    drawn.thumbnail((MOST_PIXELS, MOST_PIXELS))
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _apart(store: ResultStore, first: str, second: str) -> float:
    """So that of an item's seeds the one is shown that differs most."""
    if first == second:
        return 0.0
    pictures = [_opened(store, digest) for digest in (first, second)]
    if pictures[0] is None or pictures[1] is None or pictures[0].size != pictures[1].size:
        return -1.0
    return float(np.abs(np.asarray(pictures[0], np.float64) - np.asarray(pictures[1], np.float64)).mean())


def _opened(store: ResultStore, digest: str) -> Image.Image | None:
    try:
        with Image.open(store.image_path(digest)) as image:
            return image.convert("RGB")
    except OSError:
        return None


def _images(record: Record, item: str) -> Mapping[int, str]:
    return {output.seed: output.image for output in record.outputs if output.item == item and output.image}


def _distances(one: PresetVerdict, found: VerificationAnalysis) -> dict[str, float]:
    """By the first metric of fidelity that is not blind, else by the first one."""
    if one.evidence is None:
        return {}
    measured = [fidelity for fidelity in one.evidence.fidelity if fidelity.to_baseline]
    seeing = [fidelity for fidelity in measured if fidelity.metric not in found.blind]
    return _means((seeing or measured)[0].to_baseline) if measured else {}


def _means(by_item: ByItem) -> dict[str, float]:
    return {item: float(np.mean(values)) for item, values in by_item.items()}


def _notes(item: str, one: PresetVerdict, found: VerificationAnalysis) -> tuple[str, ...]:
    """What the metrics say of an item, its seeds averaged."""
    if one.evidence is None:
        return ()
    notes = [
        f"{title(quality.metric)} {change(quality.metric, float(np.mean(quality.differences[item])))}"
        for quality in one.evidence.quality
        if item in quality.differences and quality.metric not in found.blind
    ]
    notes += [
        f"{fidelity.metric} distance {float(np.mean(fidelity.to_baseline[item])):.2g}"
        for fidelity in one.evidence.fidelity
        if item in fidelity.to_baseline
    ]
    return tuple(notes)


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
        fmt=fmt, words=words, frontier_words=frontier_words, chart_uri=chart_uri, gain=GAIN, shown=SHOWN
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
        caution=next((record.checkpoint.caution for record in result.records if record.checkpoint), None),
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
        ("Date", fmt.date(record.created_at) if record else fmt.NOT_MEASURED),
        ("Checkpoint", f"{checkpoint.name}, {checkpoint.dtype}" if checkpoint else fmt.NOT_MEASURED),
        ("Machine", (machine_name(record.environment) if record else None) or "unknown"),
        ("Items", f"{len(result.items)} of {verification.dataset}, {len(verification.seeds)} seeds each"),
        ("Controls", fmt.count(len(verification.control_items), "item")),
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
