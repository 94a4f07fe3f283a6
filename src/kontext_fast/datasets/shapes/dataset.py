"""Items of the shapes world: an endless stream for training, and a fixed, disjoint set for evaluation."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from kontext_fast.datasets.base import Dataset
from kontext_fast.datasets.shapes.edits import EDIT_KINDS, Edit, random_edit
from kontext_fast.datasets.shapes.language import caption, instruct
from kontext_fast.datasets.shapes.render import render
from kontext_fast.datasets.shapes.scene import PATTERNS, Scene, random_scene

NAME = "shapes"
MAX_SHAPES = 4
SLOTS = MAX_SHAPES + 5
"""Most shapes that a target can have: four, and five scattered dots."""
NATIVE_SIZE = 128


@dataclass(frozen=True)
class ShapesItem:
    """One (input image, instruction) pair with everything that the judge needs to know."""

    scene: Scene
    edit: Edit
    instruction: str

    @cached_property
    def id(self) -> str:
        """Hash of the scene and the instruction: the same item has the same id on every machine."""
        content = json.dumps([asdict(self.scene), self.instruction], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def kind(self) -> str:
        return self.edit.kind

    @property
    def open(self) -> bool:
        """Whether many different outputs are right."""
        return self.edit.is_open

    @property
    def image(self) -> Image.Image:
        return self.render(NATIVE_SIZE)

    @property
    def target(self) -> Image.Image:
        """One right output; for open edits one of many."""
        return render(self.edit.target, NATIVE_SIZE)

    @property
    def mask(self) -> None:
        """None: the judge knows better than a mask what may change."""
        return None

    @property
    def input_caption(self) -> str | None:
        return self._caption(self.scene)

    @property
    def output_caption(self) -> str | None:
        """None for open edits, where the caption of one right output would be wrong for the others, and where only the
        background is left.
        """
        return None if self.open else self._caption(self.edit.target)

    def _caption(self, scene: Scene) -> str | None:
        if not scene.shapes:
            return None
        return caption(np.random.default_rng(int(self.id, 16)), scene, held_out=True)

    def render(self, size: int) -> Image.Image:
        """The input image at `size` x `size` pixels."""
        return render(self.scene, size)


@dataclass(frozen=True)
class CaptionItem:
    """A scene and its description, for text-to-image."""

    scene: Scene
    instruction: str


def draw_item(
    rng: np.random.Generator, *, held_out: bool, kind: str, count: int | None = None, pattern: str | None = None
) -> ShapesItem:
    """A random item of one kind of edit; `held_out` chooses its scenes and its wordings, which never overlap."""
    while True:
        scene = random_scene(rng, count or int(rng.integers(1, MAX_SHAPES + 1)), pattern)
        if scene.is_held_out() != held_out:
            continue
        for _ in range(8):
            edit = random_edit(rng, scene, kind)
            if edit is not None:
                return ShapesItem(scene, edit, instruct(rng, edit, held_out))


def draw_caption(rng: np.random.Generator, *, held_out: bool) -> CaptionItem:
    """A random scene with its caption; scenes and wordings are split like those of the edits."""
    while True:
        scene = random_scene(rng, int(rng.integers(1, MAX_SHAPES + 1)))
        if scene.is_held_out() == held_out:
            return CaptionItem(scene, caption(rng, scene, held_out))


def held_out(count: int, seed: int = 0) -> list[ShapesItem]:
    """`count` items that training never sees, uniform over kinds of edit, numbers of shapes and backgrounds.

    The first n items of a longer list are the list of length n, so that more items extend an earlier choice.
    """
    items = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        kind = EDIT_KINDS[index % len(EDIT_KINDS)]
        shapes = 1 + (index // len(EDIT_KINDS)) % MAX_SHAPES
        pattern = PATTERNS[(shapes + index // (len(EDIT_KINDS) * MAX_SHAPES)) % len(PATTERNS)]
        items.append(draw_item(rng, held_out=True, kind=kind, count=shapes, pattern=pattern))
    return items


def held_out_dataset(count: int, seed: int) -> Dataset:
    """`held_out` as any other data set, in the order of the ids."""
    return Dataset(NAME, sorted(held_out(count, seed), key=lambda item: item.id))


def held_out_captions(count: int, seed: int = 0) -> list[CaptionItem]:
    """`count` captioned scenes that training never sees."""
    return [draw_caption(np.random.default_rng([seed, 1, index]), held_out=True) for index in range(count)]
