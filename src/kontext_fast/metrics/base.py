"""The contract of a metric: one number per output, one file, found by `discover()`; nothing else has to be edited.

Modules import torch and its friends inside functions, so that listing the metrics costs no import.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from kontext_fast.datasets.base import Item
from kontext_fast.datasets.shapes import ShapesItem
from kontext_fast.discovery import classes

if TYPE_CHECKING:
    from PIL.Image import Image


class Role(StrEnum):
    """What a metric compares."""

    FIDELITY = "fidelity"
    """An output with another output for the same item: how different they are, not which one is better."""
    QUALITY = "quality"
    """An output with what was asked for."""


class Need(StrEnum):
    """What a case must hold for a metric to say anything of it."""

    REFERENCE = "an output to compare with"
    LATENTS = "the latents of both outputs"
    JUDGE = "an item of the shapes world"
    MASK = "a mask of what may change"
    CAPTIONS = "captions of the input and of the output"


class Control(StrEnum):
    """Outputs made worse on purpose. A metric names those that it must see."""

    HALF_STEPS = "half the steps"
    CACHE_X4 = "cache threshold x4"
    SWAPPED = "swapped instructions"
    BLUR = "blur"
    JPEG = "JPEG quality 30"
    UNEDITED = "unedited input"


PICTURE_CONTROLS = frozenset({Control.BLUR, Control.JPEG, Control.UNEDITED})
"""Made from pictures, without a run of the pipeline: they have no latents."""


@dataclass(frozen=True, eq=False)
class Case:
    """One output and what it can be held against."""

    item: Item
    digest: str
    """Hash of the output."""
    output: Image
    reference: Image | None = None
    """Of the same size as the output."""
    latents: npt.NDArray[np.float32] | None = None
    """(channels, height / 8, width / 8), right before they were decoded."""
    reference_latents: npt.NDArray[np.float32] | None = None

    def has(self, need: Need) -> bool:
        if need is Need.REFERENCE:
            return self.reference is not None
        if need is Need.LATENTS:
            return self.latents is not None and self.reference_latents is not None
        if need is Need.JUDGE:
            return isinstance(self.item, ShapesItem)
        if need is Need.MASK:
            return self.item.mask is not None
        return self.item.input_caption is not None and self.item.output_caption is not None


@dataclass(frozen=True)
class StoredOutput:
    """An output that will be a `Case` later on."""

    item: Item
    digest: str
    file: Path


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where metrics find weights, and whose outputs they look at."""

    checkpoint: str
    """Kind of checkpoint: `tiny`, `random`, `folder` or `hub`."""
    weights: Path | None = None
    """A folder with a subfolder `clip`, `dino` or `lpips`; None for what the Hub's cache holds."""
    device: str = "cpu"


class NotMeasured(Exception):
    """A metric cannot be computed here; the message is a clause that says why."""


class Metric(ABC):
    """Scores outputs. Built for one `Setting`; whatever is heavy is loaded on first use."""

    name: ClassVar[str]
    """The word used in records."""
    title: ClassVar[str]
    """For people, with its unit."""
    role: ClassVar[Role]
    needs: ClassVar[tuple[Need, ...]] = ()
    sees: ClassVar[frozenset[Control]]
    """Controls that it must detect, or it is blind."""
    bounded: ClassVar[bool] = False
    """True where a score is yes or no."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def prepare(self) -> None:  # noqa: B027 - most metrics need nothing
        """Load what it takes. Raises NotMeasured where that is not to be had."""

    def model(self) -> tuple[str, str] | None:
        """Name and sha256 of the weights of the model behind the score, once prepared; None where there is none."""
        return None

    def look_ahead(self, outputs: Sequence[StoredOutput]) -> None:  # noqa: B027 - most metrics do not
        """Told of all outputs before `scores` gets them by and by, for what is better done for many at once."""

    @abstractmethod
    def scores(self, cases: Sequence[Case]) -> list[float | bool | None]:
        """One score per case, in order, more being better or, for a fidelity metric, as `distance` takes it."""

    @staticmethod
    def distance(score: float) -> float:
        """How far apart two outputs are, 0 for equal ones and proportional to the error; for fidelity metrics."""
        return score


def facts_of(metric: Metric) -> dict[str, Any]:
    """Model name and hash, as a record stores them."""
    model = metric.model()
    return (
        {"name": metric.name} if model is None else {"name": metric.name, "model": model[0], "weights_sha256": model[1]}
    )


@cache
def discover() -> Mapping[str, type[Metric]]:
    """Every metric by name, in alphabetical order. Raises KontextError as `discovery.classes` does."""
    from kontext_fast import metrics

    return classes(metrics, Metric, "metric")
