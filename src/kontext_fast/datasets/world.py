"""Items of the shapes world, seen as any other item."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from kontext_fast.datasets.base import Dataset
from kontext_fast.datasets.shapes import ShapesItem, held_out
from kontext_fast.datasets.shapes.language import caption
from kontext_fast.datasets.shapes.scene import Scene

if TYPE_CHECKING:
    from PIL.Image import Image

NAME = "shapes"


@dataclass(frozen=True)
class WorldItem:
    """A held-out item with captions; `shapes` is what the judge needs."""

    shapes: ShapesItem

    @property
    def id(self) -> str:
        return self.shapes.id

    @property
    def instruction(self) -> str:
        return self.shapes.instruction

    @property
    def kind(self) -> str:
        return self.shapes.kind

    @property
    def open(self) -> bool:
        return self.shapes.open

    @cached_property
    def image(self) -> Image:
        return self.shapes.image

    @cached_property
    def target(self) -> Image:
        return self.shapes.target

    @property
    def mask(self) -> None:
        return None

    @property
    def input_caption(self) -> str | None:
        return self._caption(self.shapes.scene)

    @property
    def output_caption(self) -> str | None:
        """None for open edits, where the caption of one right output would be wrong of the others, and where nothing
        but the background is left.
        """
        return None if self.open else self._caption(self.shapes.edit.target)

    def _caption(self, scene: Scene) -> str | None:
        if not scene.shapes:
            return None
        return caption(np.random.default_rng(int(self.id, 16)), scene, held_out=True)


def world(count: int, seed: int) -> Dataset:
    """`count` held-out items; more items extend an earlier choice of the same seed."""
    items = [WorldItem(item) for item in held_out(count, seed)]
    return Dataset(NAME, sorted(items, key=lambda item: item.id))
