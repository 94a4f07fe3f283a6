"""Items of a verification as cards: baseline and a preset to slide between, and where they differ."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image

from kontext_fast.records.schema import Record, StoredItem
from kontext_fast.records.store import ResultStore, read_stored_image
from kontext_fast.report.output.page import image_uri, stored_image_uri
from kontext_fast.report.text.quality import change, title
from kontext_fast.report.verification import VerificationReport
from kontext_fast.verify.analysis import PresetAnalysis, VerificationAnalysis

MOST_CARDS = 12
"""Of the worst items, and of random ones."""
GAIN = 4
"""How much stronger a map draws a difference than it is."""


@dataclass(frozen=True)
class CardScore:
    """What a metric says of an item, its seeds averaged."""

    metric: str
    words: str
    loss: float
    """In units of the margin where the metric has one; the larger, the worse."""
    is_distance: bool


@dataclass(frozen=True)
class ItemCard:
    """One item: baseline and preset to slide between, where they differ, the input and the target; data URIs."""

    item: StoredItem
    seed: int
    scores: tuple[CardScore, ...]
    faults: tuple[str, ...]
    """What is wrong with single outputs, whatever the metrics say."""
    source: str | None
    target: str | None
    baseline: str | None
    preset: str | None
    difference: str | None
    width: int
    height: int

    @property
    def caption(self) -> tuple[str, ...]:
        """Its faults, the largest loss of quality, and the first distance to baseline."""
        losses = [score for score in self.scores if not score.is_distance]
        distances = [score for score in self.scores if score.is_distance]
        largest = [max(losses, key=lambda score: score.loss)] if losses else []
        return (*self.faults, *(score.words for score in (*largest, *distances[:1])))


def worst(preset: PresetAnalysis, analysis: VerificationAnalysis) -> list[str]:
    """Items with outputs that are a fault by themselves, then those that lost most, in units of the margins, and among
    equals the ones farthest from baseline.
    """
    if preset.evidence is None:
        return []
    faults = {repeat.item for repeat in preset.evidence.repeats}
    faults |= {item for tail in preset.verdict.tails for item in tail.beyond}
    losses: dict[str, float] = {}
    for quality in preset.evidence.quality:
        margin = analysis.margins.primary.get(quality.metric)
        if margin is None or quality.metric in analysis.insensitive:
            continue
        for item, differences in quality.differences.items():
            losses[item] = min(losses.get(item, 0.0), float(np.mean(differences)) / margin)
    distances = _distances(preset, analysis)
    return sorted(
        distances.keys() | losses.keys(),
        key=lambda item: (item not in faults, losses.get(item, 0.0), -distances.get(item, 0.0)),
    )


def arbitrary(items: Sequence[str], seed: int) -> list[str]:
    """Items in an order that looks at no result."""
    return random.Random(seed).sample(sorted(items), len(items))


def item_cards(
    items: Sequence[str], preset: PresetAnalysis, report: VerificationReport, store: ResultStore
) -> list[ItemCard]:
    """At most `MOST_CARDS` of `items` in their order; those whose pictures are missing are left out."""
    baseline = report.arms.baseline
    record = next((record for record in report.arms.presets if record.preset == preset.preset), None)
    if baseline is None or record is None:
        return []
    by_id = {item.id: item for item in report.result.items}

    def cards() -> Iterator[ItemCard]:
        for item in (by_id[name] for name in items if name in by_id):
            scores, faults = _scores(item.id, preset, report.analysis), _faults(item.id, preset)
            if (
                card := _card(item, scores, faults, _images(baseline, item.id), _images(record, item.id), store)
            ) is not None:
                yield card

    return list(islice(cards(), MOST_CARDS))


def _card(
    item: StoredItem,
    scores: tuple[CardScore, ...],
    faults: tuple[str, ...],
    before: Mapping[int, str],
    after: Mapping[int, str],
    store: ResultStore,
) -> ItemCard | None:
    """The card of the seed that differs most; None where a picture of it is missing."""
    seeds = sorted(before.keys() & after.keys())
    if not seeds:
        return None
    seed = max(seeds, key=lambda seed: _difference(store, before[seed], after[seed]))
    first, second = _opened(store, before[seed]), _opened(store, after[seed])
    if first is None or second is None:
        return None
    return ItemCard(
        item=item,
        seed=seed,
        scores=scores,
        faults=faults,
        source=stored_image_uri(store.image_path(item.image)) if item.image else None,
        target=stored_image_uri(store.image_path(item.target)) if item.target else None,
        baseline=stored_image_uri(store.image_path(before[seed])),
        preset=stored_image_uri(store.image_path(after[seed])),
        difference=image_uri(difference_map(first, second)) if first.size == second.size else None,
        width=first.width,
        height=first.height,
    )


def difference_map(first: Image.Image, second: Image.Image) -> Image.Image:
    """Black where two pictures of one size agree, over orange to white where they differ by 1 / `GAIN` or more."""
    differences = np.abs(np.asarray(first, np.float64) - np.asarray(second, np.float64)).mean(-1) / 255
    heat = np.clip(differences * GAIN, 0, 1)
    channels = [np.clip(heat * 3 - start, 0, 1) for start in (0.0, 0.9, 2.0)]
    return Image.fromarray((255 * np.stack(channels, axis=-1)).round().astype(np.uint8))


def _difference(store: ResultStore, first: str, second: str) -> float:
    """Mean over pixels; below 0 where it cannot be computed."""
    if first == second:
        return 0.0
    images = _opened(store, first), _opened(store, second)
    if images[0] is None or images[1] is None or images[0].size != images[1].size:
        return -1.0
    return float(np.abs(np.asarray(images[0], np.float64) - np.asarray(images[1], np.float64)).mean())


def _opened(store: ResultStore, digest: str) -> Image.Image | None:
    try:
        return read_stored_image(store.image_path(digest)).convert("RGB")
    except OSError:
        return None


def _images(record: Record, item: str) -> Mapping[int, str]:
    return {output.seed: output.image for output in record.outputs if output.item == item and output.image}


def _distances(preset: PresetAnalysis, analysis: VerificationAnalysis) -> dict[str, float]:
    """Distances to baseline by the first fidelity metric that is sensitive, else by the first one."""
    if preset.evidence is None:
        return {}
    measured = [fidelity for fidelity in preset.evidence.fidelity if fidelity.to_baseline]
    usable = [fidelity for fidelity in measured if fidelity.metric not in analysis.insensitive]
    by_item = (usable or measured)[0].to_baseline if measured else {}
    return {item: float(np.mean(distances)) for item, distances in by_item.items()}


def _scores(item: str, preset: PresetAnalysis, analysis: VerificationAnalysis) -> tuple[CardScore, ...]:
    """What the metrics that are sensitive say of an item."""
    if preset.evidence is None:
        return ()
    scores = []
    for quality in preset.evidence.quality:
        if item in quality.differences and quality.metric not in analysis.insensitive:
            mean = float(np.mean(quality.differences[item]))
            words = f"{title(quality.metric)} {change(quality.metric, mean)}"
            loss = -mean / analysis.margins.primary.get(quality.metric, 1.0)
            scores.append(CardScore(quality.metric, words, loss, is_distance=False))
    for fidelity in preset.evidence.fidelity:
        if item in fidelity.to_baseline:
            distance = float(np.mean(fidelity.to_baseline[item]))
            words = f"{fidelity.metric} distance {distance:.2g}"
            scores.append(CardScore(fidelity.metric, words, distance, is_distance=True))
    return tuple(scores)


def _faults(item: str, preset: PresetAnalysis) -> tuple[str, ...]:
    """What is wrong with single outputs of an item."""
    if preset.evidence is None:
        return ()
    return tuple(
        f"the output of seed {repeat.seed} is {repeat.what}"
        for repeat in preset.evidence.repeats
        if repeat.item == item
    )
