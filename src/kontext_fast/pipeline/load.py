"""Checkpoints: the contract of a kind of checkpoint, and from the name of one to a pipeline on a device.

A module of this package that defines a `CheckpointSource` adds a kind; `load` finds it there, and no list is edited.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from kontext_fast.discovery import values
from kontext_fast.errors import CheckpointUnavailable
from kontext_fast.pipeline.device import choose_device
from kontext_fast.records.names import SPECIAL_KINDS, CheckpointKind

if TYPE_CHECKING:
    import torch

    from kontext_fast.records.schema import Checkpoint


KONTEXT_DEV = "black-forest-labs/FLUX.1-Kontext-dev"

NOISY_LOGGERS = ("torchao", "torch.utils._pytree")
"""diffusers imports torchao where it is installed, which then reports every kernel that it cannot load."""

FULL_SIZE_BYTES = 28 * 2**30
"""From this size on, weights are taken for those of FLUX.1-Kontext-dev, which has 31.4 GiB in bfloat16."""


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A `FluxKontextPipeline` and what a record says of its weights."""

    pipe: Any
    facts: Checkpoint
    unused: tuple[str, ...] = ()
    """What of its file is left out without changing an image, one sentence each."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a checkpoint is loaded to, and how."""

    device: torch.device
    dtype: str | torch.dtype | None = None
    """None for bfloat16, or float32 for a small checkpoint on a CPU."""
    seed: int = 0
    """Of weights that are drawn."""
    in_host_memory: bool = False
    """Leave the weights in host memory: the plan that is applied next brings what runs to `device`."""


@dataclass(frozen=True, kw_only=True)
class CheckpointSource:
    """One kind of checkpoint, as data."""

    name: str
    """As messages list it, e.g. "a diffusers folder"."""
    kind: str
    """As records and the sections of suites call it; see `records.names.kind_facts`."""
    precedence: int
    """Sources are tried in ascending order: reserved names below 10, paths from 10, the network from 30."""
    matches: Callable[[str], bool]
    """Whether what a user wrote names a checkpoint of this kind. Uses neither the network nor torch."""
    full_size: Callable[[str], bool] = lambda _: False
    """Whether the weights are as large as FLUX.1-Kontext-dev's, as far as that is known without the network."""
    load: Callable[[str, Target], LoadedCheckpoint]
    """Raises CheckpointUnavailable, InvalidInput, Refused or OutOfMemory."""


def loaded_checkpoint(
    pipe: Any, *, name: str, kind: str, weights_sha256: str | None, dtype: torch.dtype
) -> LoadedCheckpoint:
    """`pipe` with its record; `name` is no path of this machine."""
    from kontext_fast.records.schema import Checkpoint

    return LoadedCheckpoint(
        pipe,
        Checkpoint(
            name=name,
            kind=kind,
            weights_sha256=weights_sha256,
            dtype=str(dtype).removeprefix("torch."),
            transformer_parameters=sum(parameter.numel() for parameter in pipe.transformer.parameters()),
        ),
    )


def load(
    checkpoint: str,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
    in_host_memory: bool = False,
) -> LoadedCheckpoint:
    """Load `tiny`, `random`, a diffusers folder, a transformer file in one, or a Hub id.

    The first GPU is used where there is one. The precision is bfloat16, but float32 for small checkpoints on a CPU.
    `seed` draws the weights of `random` and nothing else. `in_host_memory` leaves all weights there: a plan that says
    so brings what runs to the device.
    Raises CheckpointUnavailable, InvalidInput, Refused or OutOfMemory.
    """
    target = Target(device=choose_device(device), dtype=dtype, seed=seed, in_host_memory=in_host_memory)
    return find_source(checkpoint).load(checkpoint, target)


@cache
def sources() -> tuple[CheckpointSource, ...]:
    """Every kind of checkpoint, in the order in which they are tried. Raises KontextError as `discovery.values`."""
    from kontext_fast import pipeline

    by_name = values(pipeline, CheckpointSource, "checkpoint source")
    return tuple(sorted(by_name.values(), key=lambda source: source.precedence))


def find_source(checkpoint: str) -> CheckpointSource:
    """The source that can load `checkpoint`, as a user wrote it. Raises CheckpointUnavailable where there is none."""
    for source in sources():
        if source.matches(checkpoint):
            return source
    close = difflib.get_close_matches(checkpoint, ("tiny", "random"), n=1)
    meant = f"did you mean {close[0]}? It can be" if close else "use"
    raise CheckpointUnavailable(f"There is no checkpoint {checkpoint!r}; {meant} {choices()}.")


def choices() -> str:
    """What can be named as a checkpoint, as a list in words."""
    *others, last = (source.name for source in sources())
    return f"{', '.join(others)}, or {last}"


def is_full_size(checkpoint: str) -> bool:
    """Whether `checkpoint` is as large as FLUX.1-Kontext-dev, as far as that is known before it is loaded.

    Raises CheckpointUnavailable.
    """
    return find_source(checkpoint).full_size(checkpoint)


def kind_of(checkpoint: str) -> CheckpointKind:
    """What is known of `checkpoint`, as a user wrote it, before it is loaded. Raises CheckpointUnavailable."""
    return SPECIAL_KINDS.get(find_source(checkpoint).kind, CheckpointKind())
