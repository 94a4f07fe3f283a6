"""The requests that measure a cell of a suite: the same items with the same seeds for every preset.

Items are those of the shapes world, or the user's own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL.Image import Image

from kontext_fast.bench.suites import NATIVE, Suite
from kontext_fast.datasets.base import Dataset, Item
from kontext_fast.datasets.shapes import held_out
from kontext_fast.datasets.shapes.dataset import CaptionItem, draw_caption
from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.edit import EditRequest, plan_for, text_length
from kontext_fast.pipeline.sizes import Size, parse_size
from kontext_fast.records.schema import Cell, Mode, StoredItem, Workload

_CAPTIONS_PER_ITEM = 50
"""How many captions are drawn at most for each one that is needed."""


@dataclass(frozen=True)
class Task:
    """One item and the request that edits it."""

    item: StoredItem
    """Its `image` is None until the image is stored."""
    request: EditRequest


def tasks(pipe: Any, cell: Cell, suite: Suite, dataset: Dataset | None = None) -> list[Task]:
    """One task per item, of `dataset` or, without one, of the shapes world.

    Raises InvalidInput if `pipe` cannot read enough captions, or too few items of `dataset` are run at one size.
    """
    size = None if cell.size == NATIVE else parse_size(cell.size)
    return [
        Task(
            item,
            EditRequest(
                item.instruction,
                image,
                steps=cell.steps,
                guidance=suite.guidance,
                seed=suite.seed + index,
                size=size,
                batch=cell.batch,
            ),
        )
        for index, (item, image) in enumerate(_items(pipe, cell.mode, suite, size, dataset))
    ]


def _items(
    pipe: Any, mode: Mode, suite: Suite, size: Size | None, dataset: Dataset | None
) -> Iterator[tuple[StoredItem, Image | None]]:
    if mode == "text-to-image":
        for caption in _readable_captions(pipe, suite):
            yield _caption(caption), None
        return
    if dataset is not None:
        for item in _of_one_size(pipe, dataset, suite.items, size):
            yield _stored(item), item.image
        return
    side = max(size or (pipe.vae.config.sample_size,))
    for item in held_out(suite.items, suite.seed):
        yield _stored(item), item.render(side)


def _stored(item: Item) -> StoredItem:
    return StoredItem(id=item.id, instruction=item.instruction, image=None, kind=item.kind, open=item.open)


def _of_one_size(pipe: Any, dataset: Dataset, count: int, size: Size | None) -> list[Item]:
    """The first `count` items of those that most share what is run for them: times of several sizes have no mean."""
    alike: dict[tuple[Size, Size | None], list[Item]] = {}
    for item in dataset.items:
        plan = plan_for(pipe, item.image.size, size)
        alike.setdefault((plan.size, plan.reference_size), []).append(item)
    (width, height), _ = most = max(alike, key=lambda sizes: len(alike[sizes]))
    if len(alike[most]) < count:
        have = len(alike[most])
        raise InvalidInput(
            f"{count} items are to be timed at one size, and of the images of {dataset.name} at most {have} are run at "
            f"one, {width}x{height}: add --items {have}, or give more images of one shape."
        )
    return alike[most][:count]


def workload(pipe: Any, cell: Cell, cell_tasks: list[Task]) -> Workload:
    """What `pipe` really runs for `cell_tasks`."""
    first = cell_tasks[0].request
    plan = plan_for(pipe, first.image.size if first.image else None, first.size)
    return Workload(
        mode=cell.mode,
        width=plan.width,
        height=plan.height,
        reference_width=plan.reference_width,
        reference_height=plan.reference_height,
        text_tokens=plan.text_tokens,
        image_tokens=plan.image_tokens,
        reference_tokens=plan.reference_tokens,
        steps=first.steps,
        guidance=first.guidance,
        true_cfg=first.true_cfg,
        batch=first.batch,
        items=tuple(task.item.id for task in cell_tasks),
        seeds=tuple(seed for task in cell_tasks for seed in task.request.seeds()),
    )


def _readable_captions(pipe: Any, suite: Suite) -> list[CaptionItem]:
    """Captions that fit the text length of `pipe`, which refuses longer ones.

    In the words of training, which take few tokens: the images have no judge.
    """
    limit = text_length(pipe)
    captions: list[CaptionItem] = []
    for index in range(suite.items * _CAPTIONS_PER_ITEM):
        item = draw_caption(np.random.default_rng([suite.seed, 2, index]), held_out=False)
        if len(pipe.tokenizer_2(item.instruction, verbose=False).input_ids) <= limit:
            captions.append(item)
        if len(captions) == suite.items:
            return captions
    raise InvalidInput(f"This checkpoint reads {limit} tokens, too few for captions; leave text-to-image out.")


def _caption(item: CaptionItem) -> StoredItem:
    content = json.dumps([asdict(item.scene), item.instruction], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    return StoredItem(id=digest, instruction=item.instruction, image=None, kind="caption", open=True)
