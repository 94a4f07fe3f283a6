"""From the name of a checkpoint to a pipeline on a device, with the facts that records need."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from kontext_fast.discovery import values
from kontext_fast.errors import CheckpointUnavailable
from kontext_fast.pipeline.device import choose_device
from kontext_fast.pipeline.hub import KONTEXT_DEV
from kontext_fast.pipeline.source import CheckpointSource, LoadedCheckpoint, Target
from kontext_fast.records.names import CheckpointKind, kind_facts

if TYPE_CHECKING:
    import torch


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
    raise CheckpointUnavailable(f"There is no checkpoint {checkpoint!r}; use {choices()}.")


def choices() -> str:
    """What can be named as a checkpoint, as a list in words."""
    *others, last = (source.name for source in sources())
    return f"{', '.join(others)}, or {last}"


def is_full_size(checkpoint: str) -> bool:
    """Whether `checkpoint` is as large as FLUX.1-Kontext-dev, as far as that is known before it is loaded.

    Raises CheckpointUnavailable.
    """
    return find_source(checkpoint).full_size(checkpoint)


def default_checkpoint(device: str | None) -> tuple[str, str]:
    """The checkpoint to use where none is named, and the reason for it. Imports torch."""
    import torch
    from huggingface_hub import get_token

    if device == "cpu":
        return "tiny", "the device is the CPU"
    if not torch.cuda.is_available():
        return "tiny", "there is no GPU"
    if get_token() is None:
        return "tiny", "HF_TOKEN is not set"
    return KONTEXT_DEV, "there is a GPU and HF_TOKEN is set"


def kind_of(checkpoint: str) -> CheckpointKind:
    """What is known of `checkpoint`, as a user wrote it, before it is loaded. Raises CheckpointUnavailable."""
    return kind_facts(find_source(checkpoint).kind)
