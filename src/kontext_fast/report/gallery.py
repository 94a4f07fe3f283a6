"""The pictures side by side: of each item the input and every preset's output, with the judge's verdict."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kontext_fast.analysis.groups import Group, Run
from kontext_fast.analysis.judge_scores import StoredJudgement, judgement_of
from kontext_fast.records.schema import BASELINE, StoredItem

if TYPE_CHECKING:
    from kontext_fast.report.verification import VerificationReport

MOST_ITEMS = 12
MOST_VERIFIED = 4


@dataclass(frozen=True)
class GalleryPicture:
    caption: str
    image: str | None
    """Hash of the stored image."""
    absent: str | None
    """Why there is none."""
    preset: str | None = None
    """None for what no preset made."""
    judgement: StoredJudgement | None = None


@dataclass(frozen=True)
class GalleryItem:
    item: StoredItem
    seed: int
    pictures: tuple[GalleryPicture, ...]

    @property
    def comparable(self) -> bool:
        """Whether there are outputs of baseline and of another preset."""
        presets = [picture.preset for picture in self.pictures if picture.image and picture.preset]
        return BASELINE in presets and len(presets) > 1

    @property
    def done_by_baseline(self) -> bool:
        """Whether the judge accepts baseline's output."""
        return any(
            picture.preset == BASELINE and picture.judgement is not None and bool(picture.judgement.accepted)
            for picture in self.pictures
        )


@dataclass(frozen=True)
class Gallery:
    cards: tuple[GalleryItem, ...]
    items: int
    """Items with stored outputs, of which the cards are an evenly spaced choice that looks at no result."""


def gallery(group: Group, items: Sequence[StoredItem]) -> Gallery:
    """The first seed of each item, from the first round that kept its output; what baseline gets right comes first."""
    by_id = {item.id: item for item in items}
    wanted = dict.fromkeys(item for run in group.runs for item in run.measurement.workload.items)
    cards = [card for name in wanted if name in by_id and (card := _card(group, by_id[name])) is not None]
    chosen = _evenly_spaced(cards, MOST_ITEMS)
    return Gallery(tuple(sorted(chosen, key=lambda card: not card.done_by_baseline)), len(cards))


def verified_gallery(report: VerificationReport) -> Gallery:
    """All items of a verification in an order drawn with its seed, with the outputs of all its presets."""
    baseline = report.arms.baseline
    if baseline is None:
        return Gallery((), 0)
    outputs = {
        record.preset: {(output.item, output.seed): output.image for output in record.outputs if output.image}
        for record in (baseline, *report.arms.presets)
    }
    seeds = dict(reversed(outputs[baseline.preset]))
    shown = [item for item in report.result.items if item.id in seeds]
    cards = []
    for item in random.Random(report.result.seed).sample(shown, len(shown)):
        pictures = [GalleryPicture("input", item.image, None if item.image else "no input image")]
        for record in (baseline, *report.arms.presets):
            image = outputs[record.preset].get((item.id, seeds[item.id]))
            judged = judgement_of(record, item.id, seeds[item.id], image) if image else None
            pictures.append(GalleryPicture(record.preset, image, None if image else "not kept", record.preset, judged))
        cards.append(GalleryItem(item, seeds[item.id], tuple(pictures)))
    return Gallery(tuple(cards), len(shown))


def _card(group: Group, item: StoredItem) -> GalleryItem | None:
    seed = next((s.seed for run in group.runs for s in run.samples if s.item == item.id and s.images), None)
    if seed is None:
        return None
    pictures = [GalleryPicture("input", item.image, None if item.image else "no input image")]
    if item.target:
        pictures.append(GalleryPicture("target", item.target, None))
    pictures += [_output(group, preset, item.id, seed) for preset in group.presets]
    return GalleryItem(item, seed, tuple(pictures))


def _output(group: Group, preset: str, item: str, seed: int) -> GalleryPicture:
    runs = sorted(group.runs_of(preset), key=lambda run: run.record.round)
    for run in runs:
        image = _images(run, item).get(seed)
        if image is not None:
            return GalleryPicture(preset, image, None, preset, judgement_of(run.record, item, seed, image))
    failures = group.failures_of(preset)
    if runs:
        absent = "output not kept"
    else:
        absent = failures[0].status if failures else "not measured"
    return GalleryPicture(preset, None, absent)


def _images(run: Run, item: str) -> Mapping[int, str]:
    """The first stored output of each seed."""
    first: dict[int, str] = {}
    for sample in run.samples:
        if sample.item == item and sample.images:
            first.setdefault(sample.seed, sample.images[0])
    return first


def _evenly_spaced(cards: Sequence[GalleryItem], most: int) -> Sequence[GalleryItem]:
    if len(cards) <= most:
        return cards
    return [cards[index * len(cards) // most] for index in range(most)]
