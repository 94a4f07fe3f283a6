"""From the name of a checkpoint to a pipeline on a device, with the facts that records need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kontext_fast.errors import CheckpointUnavailable, OutOfMemory, Refused
from kontext_fast.pipeline.device import choose_device, choose_dtype, memory_errors
from kontext_fast.pipeline.folder import INDEX, check_folder, load_folder, weight_files, weights_bytes, weights_sha256
from kontext_fast.pipeline.hub import download, is_hub_id
from kontext_fast.pipeline.random_weights import Architecture, build_random
from kontext_fast.records.schema import Checkpoint

if TYPE_CHECKING:
    import torch

TINY = "tiny"
RANDOM = "random"

TINY_FOLDER = Path(__file__).parent / "checkpoints" / TINY

RANDOM_NEEDS_GIB = 34
"""31.4 GiB of bfloat16 weights, and what one edit at 1024x1024 needs beside them."""

_GIB = 2**30


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A `FluxKontextPipeline` and what a record says of its weights."""

    pipe: Any
    facts: Checkpoint


@dataclass(frozen=True)
class _Source:
    """A checkpoint on disk."""

    kind: Literal["tiny", "folder", "hub"]
    name: str
    """For records: never a path."""
    shown: str
    """For messages: as the user wrote it."""
    folder: Path
    transformer_file: Path | None = None


def load(
    checkpoint: str,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
    in_host_memory: bool = False,
) -> LoadedCheckpoint:
    """Load `tiny`, `random`, a diffusers folder, a transformer file beside one, or a Hub id.

    The first GPU is used where there is one. The precision is bfloat16, but float32 for small checkpoints on a CPU.
    `seed` draws the weights of `random` and nothing else. `in_host_memory` leaves all weights there: a plan that says
    so brings what runs to the device.
    Raises CheckpointUnavailable, InvalidInput, Refused or OutOfMemory.
    """
    chosen = choose_device(device)
    if checkpoint == RANDOM:
        return _load_random(chosen, dtype, seed, in_host_memory=in_host_memory)
    source = _find(checkpoint)
    precision = choose_dtype(dtype, chosen, weights_bytes(source.folder))
    with memory_errors(f"loading {source.shown}"):
        pipe = load_folder(source.folder, source.shown, precision, transformer_file=source.transformer_file)
        if not in_host_memory:
            pipe.to(chosen)
    files = [source.transformer_file] if source.transformer_file else weight_files(source.folder / "transformer")
    return LoadedCheckpoint(
        pipe,
        Checkpoint(
            name=source.name,
            kind=source.kind,
            weights_sha256=weights_sha256(files),
            dtype=str(precision).removeprefix("torch."),
            transformer_parameters=_count(pipe.transformer),
        ),
    )


def _find(checkpoint: str) -> _Source:
    if checkpoint == TINY:
        check_folder(TINY_FOLDER, TINY)
        return _Source("tiny", TINY, TINY, TINY_FOLDER)
    path = Path(checkpoint).expanduser()
    # The empty word would be the current folder.
    if checkpoint and path.is_dir():
        check_folder(path, checkpoint)
        return _Source("folder", path.resolve().name, checkpoint, path)
    if path.is_file():
        return _find_single_file(path, checkpoint)
    if is_hub_id(checkpoint):
        return _Source("hub", checkpoint, checkpoint, download(checkpoint))
    raise CheckpointUnavailable(
        f"There is no checkpoint {checkpoint!r}; use tiny, random, a diffusers folder, "
        "a .safetensors file inside one, or a Hub id such as black-forest-labs/FLUX.1-Kontext-dev."
    )


def _find_single_file(path: Path, shown: str) -> _Source:
    if path.suffix != ".safetensors":
        raise CheckpointUnavailable(f"{shown} is not a .safetensors file; convert it, or use tiny.")
    folder = path.parent
    if not (folder / INDEX).is_file():
        raise CheckpointUnavailable(
            f"{shown} is a transformer alone; put it into a diffusers folder of FLUX.1-Kontext, which has the rest."
        )
    check_folder(folder, str(folder), own_transformer=False)
    return _Source("folder", f"{folder.resolve().name}/{path.name}", shown, folder, path)


def check_room_for_random(device: torch.device, *, in_host_memory: bool = False) -> None:
    """Raise Refused or OutOfMemory where `device`, or the host, cannot hold the checkpoint `random`."""
    import torch

    if device.type != "cuda":
        raise Refused(
            f"The checkpoint random needs a CUDA GPU with about {RANDOM_NEEDS_GIB} GiB of free memory; use tiny here."
        )
    if in_host_memory:
        import psutil

        free_bytes, where = psutil.virtual_memory().available, "the host"
    else:
        free_bytes, where = torch.cuda.mem_get_info(device)[0], str(device)
    if free_bytes < RANDOM_NEEDS_GIB * _GIB:
        raise OutOfMemory(
            f"The checkpoint random needs about {RANDOM_NEEDS_GIB} GiB of free memory and {where} has "
            f"{free_bytes / _GIB:.1f}; free what other programs hold, or use tiny."
        )


def _load_random(
    device: torch.device, dtype: str | torch.dtype | None, seed: int, *, in_host_memory: bool
) -> LoadedCheckpoint:
    import torch

    check_room_for_random(device, in_host_memory=in_host_memory)
    precision = choose_dtype(dtype or torch.bfloat16, device, 0)
    with memory_errors("building random"):
        pipe = build_random(
            Architecture(),
            tokenizers=TINY_FOLDER,
            device=device,
            dtype=precision,
            seed=seed,
            kept_on=torch.device("cpu") if in_host_memory else None,
        )
    return LoadedCheckpoint(
        pipe,
        Checkpoint(
            name=RANDOM,
            kind="random",
            weights_sha256=None,
            dtype=str(precision).removeprefix("torch."),
            transformer_parameters=_count(pipe.transformer),
        ),
    )


def _count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
