"""The contract of a metric: one number per output, in one file that `discover()` finds; nothing else has to be edited.

Modules import torch and other large packages inside functions, so that listing the metrics costs no import.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from kontext_fast.datasets.base import Item
from kontext_fast.discovery import classes

if TYPE_CHECKING:
    from PIL.Image import Image


class Role(StrEnum):
    """What a metric compares."""

    FIDELITY = "fidelity"
    """An output with another output for the same item: how different they are, not which one is better."""
    QUALITY = "quality"
    """An output with what the instruction asks for."""


@dataclass(frozen=True)
class Need:
    """What a case must come with for a metric to score it. One that a single metric has is declared beside it."""

    what: str
    met: Callable[[Case], bool]
    of_item: bool = False
    """True where the item alone decides, so that it is known before anything is scored."""


REFERENCE = Need("an output to compare with", lambda case: case.reference is not None)
LATENTS = Need(
    "the latents of both outputs", lambda case: case.latents is not None and case.reference_latents is not None
)


class Control(StrEnum):
    """Negative controls: outputs made worse on purpose. A metric names those that it must detect."""

    HALF_STEPS = "half the steps"
    CACHE_X4 = "cache threshold x4"
    SWAPPED = "swapped instructions"
    BLUR = "blur"
    JPEG = "JPEG quality 30"
    UNEDITED = "unedited input"


PICTURE_CONTROLS = frozenset({Control.BLUR, Control.JPEG, Control.UNEDITED})
"""Made from images, without a run of the pipeline: they have no latents."""


@dataclass(frozen=True, eq=False)
class Case:
    """One output and what it is compared with."""

    item: Item
    output: Image
    reference: Image | None = None
    """Of the same size as the output."""
    latents: npt.NDArray[np.float32] | None = None
    """(channels, height / 8, width / 8), right before they were decoded."""
    reference_latents: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where metrics find weights, and which checkpoint made the outputs."""

    random_weights: bool = False
    """The checkpoint's images are noise."""
    has_judge: bool = False
    """The checkpoint has learned the shapes world."""
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
    must_detect: ClassVar[frozenset[Control]]
    """Controls in which the metric must find a difference; otherwise no verdict rests on it."""
    bounded: ClassVar[bool] = False
    """True where a score is yes or no."""
    parallel: ClassVar[bool] = False
    """True where a score depends on the item and the output alone and is worth several processes of a CPU."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def prepare(self) -> None:  # noqa: B027 - most metrics need nothing
        """Load what it takes. Raises NotMeasured where that is not to be had."""

    def model(self) -> tuple[str, str] | None:
        """Name and sha256 of the weights of the model behind the score, once prepared; None where there is none."""
        return None

    @abstractmethod
    def scores(self, cases: Sequence[Case]) -> list[float | bool | None]:
        """One score per case, in order, more being better or, for a fidelity metric, as `distance` takes it."""

    def notes(self, cases: Sequence[Case]) -> list[str | None]:
        """What to say of each score, in order."""
        return [None] * len(cases)

    @staticmethod
    def distance(score: float) -> float:
        """How far apart two outputs are, 0 for equal ones and proportional to the error; for fidelity metrics."""
        return score


@cache
def discover() -> Mapping[str, type[Metric]]:
    """Every metric by name, in alphabetical order. Raises KontextError as `discovery.classes` does."""
    from kontext_fast import metrics

    return classes(metrics, Metric, "metric")
