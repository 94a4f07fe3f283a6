"""The options of a verification. A request that exists is valid, as far as that does not depend on the machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kontext_fast.datasets import read_dataset
from kontext_fast.datasets.base import Dataset
from kontext_fast.datasets.shapes import held_out_dataset
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.presets import PRESETS, Preset
from kontext_fast.pipeline.edit import EditRequest
from kontext_fast.pipeline.load import kind_of
from kontext_fast.records.schema import BASELINE
from kontext_fast.verify.controls import CONTROL_ITEMS
from kontext_fast.verify.margins import Margins, read_margins


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to verify. Raises InvalidInput on creation."""

    presets: tuple[str | Preset, ...]
    checkpoint: str = "tiny"
    items: int = 100
    """At most; a data set may have fewer."""
    seeds: int = 2
    """Per item; two at least, since differences are compared with seed noise."""
    control_items: int = CONTROL_ITEMS
    """At least; a quarter of the items where that is more."""
    pipe: Any = None
    """A pipeline of the caller's, in place of a checkpoint; it is as before afterwards."""
    lora: tuple[tuple[str, float], ...] = ()
    """Paths and strengths of LoRAs to merge into the checkpoint."""
    dataset: Path | Dataset | None = None
    steps: int = 28
    guidance: float = 2.5
    seed: int = 0
    batch: int | None = None
    """Images per call at most; None for what suits the checkpoint and the device."""
    converged_items: int = 0
    """How many items are compared with the converged reference, too; see `verify.converged`."""
    frontier: bool = False
    """Whether to time single edits, too, and to compare presets with fewer steps."""
    device: str | None = None
    weights: Path | None = None
    """Of learned metrics; None for the Hub's cache."""
    margins: Margins = field(default_factory=read_margins)

    def __post_init__(self) -> None:
        if self.items < 2:
            raise InvalidInput(f"{self.items} items are too few; use at least 2, and 100 for a verdict.")
        if self.seeds < 2:
            raise InvalidInput("One seed gives no seed noise to compare with; use at least 2 seeds.")
        if self.control_items < 2:
            raise InvalidInput(f"{self.control_items} items are too few for the controls; use at least 2.")
        if self.converged_items < 0 or self.converged_items == 1 or self.converged_items > self.items:
            raise InvalidInput(
                f"{self.converged_items} items cannot be compared with the converged reference; use 2 or more, up to "
                f"the {self.items} items of the verification."
            )
        if self.batch is not None and self.batch < 1:
            raise InvalidInput(f"The batch is {self.batch}; give a whole number of at least 1.")
        # Options that an edit refuses are refused before anything is loaded.
        EditRequest("-", steps=self.steps, guidance=self.guidance, seed=self.seed, batch=self.seeds)
        names = [preset if isinstance(preset, str) else preset.name for preset in self.presets]
        if not names or len(set(names)) < len(names) or BASELINE in names:
            raise InvalidInput(f"Name each preset to verify once, and not {BASELINE}, which they are compared with.")

    @property
    def all_seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + self.seeds))


def every_preset(checkpoint: str = "tiny") -> tuple[str, ...]:
    """All presets but baseline and those that were fitted to other weights than `checkpoint`."""
    return tuple(
        name for name, preset in PRESETS.items() if name != BASELINE and preset.fitted_to in (None, checkpoint)
    )


def dataset_of(request: Request) -> Dataset:
    """The items that `request` names. Raises InvalidInput where there are none."""
    if isinstance(request.dataset, Dataset):
        return request.dataset
    if request.dataset is not None:
        return read_dataset(request.dataset)
    if request.pipe is not None:
        raise InvalidInput("Give items: pairs of an image and an instruction, or the path of a data set.")
    kind = kind_of(request.checkpoint)
    if not (kind.has_judge or kind.random_weights):
        raise InvalidInput(
            f"Give images and instructions for {request.checkpoint} with --dataset: a folder, a JSONL file or a copy "
            "of KontextBench."
        )
    return held_out_dataset(request.items, request.seed)
