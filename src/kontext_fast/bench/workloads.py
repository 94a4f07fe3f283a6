"""From a cell of a suite to the requests that measure it: the same items with the same seeds for every preset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL.Image import Image

from kontext_fast.bench.suites import NATIVE, Suite
from kontext_fast.datasets.shapes import held_out
from kontext_fast.datasets.shapes.dataset import CaptionItem, draw_caption
from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.edit import EditRequest, plan_for, text_length
from kontext_fast.pipeline.sizes import parse_size
from kontext_fast.records.schema import Cell, Mode, StoredItem, Workload

_CAPTIONS_PER_ITEM = 50
"""How many are looked at for each one that is needed."""


@dataclass(frozen=True)
class Task:
    """One item and what is asked of it."""

    item: StoredItem
    """Its `image` is None until the image is stored."""
    request: EditRequest


def tasks(pipe: Any, cell: Cell, suite: Suite) -> list[Task]:
    """One task per item. Raises InvalidInput where `pipe` cannot read as many captions."""
    native = pipe.vae.config.sample_size
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
        for index, (item, image) in enumerate(_items(pipe, cell.mode, suite, side=max(size or (native,))))
    ]


def _items(pipe: Any, mode: Mode, suite: Suite, side: int) -> Iterator[tuple[StoredItem, Image | None]]:
    if mode == "text-to-image":
        for caption in _readable_captions(pipe, suite):
            yield _caption(caption), None
        return
    for item in held_out(suite.items, suite.seed):
        facts = StoredItem(id=item.id, instruction=item.instruction, image=None, kind=item.kind, open=item.open)
        yield facts, item.render(side)


def workload(pipe: Any, cell: Cell, of: list[Task]) -> Workload:
    """What `pipe` will really run for `of`."""
    first = of[0].request
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
        items=tuple(task.item.id for task in of),
        seeds=tuple(seed for task in of for seed in task.request.seeds()),
    )


def _readable_captions(pipe: Any, suite: Suite) -> list[CaptionItem]:
    """Captions differ in length, and a checkpoint refuses those that it would have to cut off.

    In the words of training, which are short in its tokenizer: nobody judges what becomes of them.
    """
    limit = text_length(pipe)
    found: list[CaptionItem] = []
    for index in range(suite.items * _CAPTIONS_PER_ITEM):
        item = draw_caption(np.random.default_rng([suite.seed, 2, index]), held_out=False)
        if len(pipe.tokenizer_2(item.instruction, verbose=False).input_ids) <= limit:
            found.append(item)
        if len(found) == suite.items:
            return found
    raise InvalidInput(f"This checkpoint reads {limit} tokens, too few for captions; leave text-to-image out.")


def _caption(item: CaptionItem) -> StoredItem:
    content = json.dumps([asdict(item.scene), item.instruction], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    return StoredItem(id=digest, instruction=item.instruction, image=None, kind="caption", open=True)
