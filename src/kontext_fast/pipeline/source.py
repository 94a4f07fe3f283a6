"""The contract of a kind of checkpoint: how a user names it, how it is found and how it is loaded.

A module of this package that defines a `CheckpointSource` adds one; `load` finds it there, and no list is edited.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from kontext_fast.records.schema import Checkpoint


FULL_SIZE_BYTES = 28 * 2**30
"""From this size on, weights are taken for those of FLUX.1-Kontext-dev, which has 31.4 GiB in bfloat16."""


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A `FluxKontextPipeline` and what a record says of its weights."""

    pipe: Any
    facts: Checkpoint


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
