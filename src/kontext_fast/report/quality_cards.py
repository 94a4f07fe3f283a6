"""Which items of a verification are shown, and the map of where two outputs differ."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from kontext_fast.records.schema import Item, Record, ResultFile
from kontext_fast.records.store import ResultStore
from kontext_fast.report.images import MOST_PIXELS, data_uri
from kontext_fast.report.quality_words import change, title
from kontext_fast.verify.analysis import PresetVerdict, VerificationAnalysis
from kontext_fast.verify.comparisons import ByItem

SHOWN = 12
"""Of the worst items, and of random ones."""
GAIN = 4
"""How much stronger a map draws a difference than it is."""


@dataclass(frozen=True)
class Card:
    """One item: baseline and preset to slide between, where they differ, the input and the target; data URIs."""

    item: Item
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
    item: Item, one: PresetVerdict, found: VerificationAnalysis, baseline: Record, preset: Record, store: ResultStore
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
