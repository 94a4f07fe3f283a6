"""The interface of an item, and a data set: its usable items with the reasons why others were rejected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image


class Item(Protocol):
    """One (input image, instruction) pair, identified by its content and never by its name or position in a file."""

    @property
    def id(self) -> str:
        """Hash of the input image and the instruction: 16 hexadecimal digits, the same on every machine."""

    @property
    def instruction(self) -> str: ...

    @property
    def kind(self) -> str | None:
        """Kind of edit, for tables per kind."""

    @property
    def open(self) -> bool | None:
        """True where many outputs are right; None where this is unknown."""

    @property
    def image(self) -> Image:
        """The input image, RGB and upright."""

    @property
    def target(self) -> Image | None:
        """One right output."""

    @property
    def mask(self) -> Image | None:
        """Where the edit may change the input image: white (from 128 up) in a picture of mode L."""

    @property
    def input_caption(self) -> str | None:
        """What the input image shows."""

    @property
    def output_caption(self) -> str | None:
        """What a right output shows."""


@dataclass(frozen=True)
class Dataset:
    """The usable items in the order of their ids."""

    name: str
    """For records: never a path."""
    items: Sequence[Item]
    rejected: tuple[str, ...] = ()
    """Why other items cannot be used, one sentence each."""
