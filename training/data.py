"""Endless training data: processes draw scenes and sentences, the device renders and encodes them.

Processes send only numbers (a few hundred bytes an item); pictures exist on the device alone.
"""

from __future__ import annotations

import multiprocessing as mp
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from architecture import IMAGE_SIZE, TEXT_TOKENS
from transformers import AutoTokenizer

from kontext_fast.datasets.shapes.dataset import SLOTS, CaptionItem, ShapesItem, draw_caption, draw_item
from kontext_fast.datasets.shapes.edits import EDIT_KINDS
from kontext_fast.datasets.shapes.render import render_arrays
from kontext_fast.datasets.shapes.scene import as_arrays

KIND_WEIGHTS = {"scatter": 4.0, "add": 4.0, "remove": 1.0, "background color": 1.0}
OTHER_WEIGHT = 1.5
"""Kinds that take longest to learn are drawn more often."""

Arrays = dict[str, np.ndarray]


def sentences(count: int, seed: int) -> list[str]:
    """Training sentences of every kind, to build vocabularies from; held-out wordings contribute nothing."""
    rng = np.random.default_rng(seed)
    drawn = [draw_item(rng, held_out=False, kind=EDIT_KINDS[i % len(EDIT_KINDS)]).instruction for i in range(count)]
    return drawn + [draw_caption(rng, held_out=False).instruction for _ in range(count)]


def tokens(tokenizer: object, texts: list[str]) -> np.ndarray:
    """Token ids (len(texts), TEXT_TOKENS), int16, padded the way the pipeline pads them."""
    encoded = tokenizer(texts, padding="max_length", max_length=TEXT_TOKENS, truncation=True)  # type: ignore[operator]
    return np.asarray(encoded.input_ids, dtype=np.int16)


def edit_chunk(rng: np.random.Generator, size: int, t5: object, clip: object) -> Arrays:
    """`size` edits as arrays: the source's and the target's scene, both tokenizations of the instruction, and whether
    there is but one right answer."""
    weights = np.asarray([KIND_WEIGHTS.get(kind, OTHER_WEIGHT) for kind in EDIT_KINDS])
    kinds = rng.choice(EDIT_KINDS, size=size, p=weights / weights.sum())
    items: list[ShapesItem] = [draw_item(rng, held_out=False, kind=str(kind)) for kind in kinds]
    source = [as_arrays(item.scene, SLOTS) for item in items]
    target = [as_arrays(item.edit.target, SLOTS) for item in items]
    texts = [item.instruction for item in items]
    scenes = _stack(source, "source") | _stack(target, "target")
    one_answer = np.asarray([not item.open for item in items])
    return scenes | {"t5": tokens(t5, texts), "clip": tokens(clip, texts), "one_answer": one_answer}


def caption_chunk(rng: np.random.Generator, size: int, t5: object, clip: object) -> Arrays:
    """`size` captioned scenes as arrays; a scene is the target of its caption and there is no source."""
    items: list[CaptionItem] = [draw_caption(rng, held_out=False) for _ in range(size)]
    texts = [item.instruction for item in items]
    target = [as_arrays(item.scene, SLOTS) for item in items]
    return _stack(target, "target") | {"t5": tokens(t5, texts), "clip": tokens(clip, texts)}


def _stack(scenes: list[tuple[np.ndarray, np.ndarray]], name: str) -> Arrays:
    shapes, backgrounds = zip(*scenes, strict=True)
    return {f"{name}_shapes": np.stack(shapes), f"{name}_background": np.stack(backgrounds)}


def _produce(make: Callable[..., Arrays], seed: list[int], size: int, folder: Path, chunks: mp.Queue) -> None:
    torch.set_num_threads(1)
    t5, clip = (AutoTokenizer.from_pretrained(folder / name) for name in ("tokenizer_2", "tokenizer"))
    rng = np.random.default_rng(seed)
    while True:
        chunks.put(make(rng, size, t5, clip))


@contextmanager
def stream(
    make: Callable[..., Arrays], *, seed: int, size: int, tokenizers: Path, processes: int
) -> Iterator[Callable[[], Arrays]]:
    """Runs `processes` producers of `make` and yields a function that returns their next chunk."""
    context = mp.get_context("spawn")
    chunks: mp.Queue = context.Queue(maxsize=2 * processes)
    workers = [
        context.Process(target=_produce, args=(make, [seed, index], size, tokenizers, chunks), daemon=True)
        for index in range(processes)
    ]
    for worker in workers:
        worker.start()

    def next_chunk() -> Arrays:
        while True:
            try:
                return chunks.get(timeout=20)
            except queue.Empty:
                if not any(worker.is_alive() for worker in workers):
                    raise RuntimeError("all data processes ended; see their traceback above") from None

    try:
        yield next_chunk
    finally:
        for worker in workers:
            worker.terminate()


def pictures(chunk: Arrays, name: str, device: torch.device) -> torch.Tensor:
    """The rendered scenes called `name`, (n, 3, 128, 128) float32 in -1..1."""
    shapes, background = (torch.as_tensor(chunk[f"{name}_{part}"], device=device) for part in ("shapes", "background"))
    return render_arrays(shapes, background, IMAGE_SIZE, torch).permute(0, 3, 1, 2) * 2 - 1


@dataclass
class Pool:
    """Rendered or encoded items on the device, drawn from at random and renewed piece by piece."""

    columns: dict[str, torch.Tensor]
    filled: int = 0
    _next: int = 0

    @classmethod
    def empty(cls, example: dict[str, torch.Tensor], capacity: int) -> Pool:
        return cls({name: tensor.new_empty(capacity, *tensor.shape[1:]) for name, tensor in example.items()})

    @classmethod
    def filled_by(cls, make: Callable[[], dict[str, torch.Tensor]], capacity: int, first: int | None = None) -> Pool:
        """A pool for `capacity` rows that `make` has put the `first` ones into (None: all)."""
        rows = make()
        pool = cls.empty(rows, capacity)
        pool.add(rows)
        while pool.filled < (first or capacity):
            pool.add(make())
        return pool

    def add(self, rows: dict[str, torch.Tensor]) -> None:
        """Overwrites the oldest rows."""
        count = len(next(iter(rows.values())))
        capacity = len(next(iter(self.columns.values())))
        where = (torch.arange(count) + self._next) % capacity
        for name, tensor in rows.items():
            self.columns[name][where.to(tensor.device)] = tensor
        self._next = (self._next + count) % capacity
        self.filled = min(capacity, self.filled + count)

    def draw(self, count: int) -> dict[str, torch.Tensor]:
        device = next(iter(self.columns.values())).device
        chosen = torch.randint(self.filled, (count,), device=device)
        return {name: tensor[chosen] for name, tensor in self.columns.items()}
