"""A FLUX.1-Kontext pipeline from a diffusers folder, with its own transformer or with one from a single file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kontext_fast.errors import CheckpointUnavailable
from kontext_fast.pipeline.device import is_out_of_host_memory

if TYPE_CHECKING:
    import torch


PIPELINE = "FluxKontextPipeline"

INDEX = "model_index.json"

MODELS = ("transformer", "vae", "text_encoder", "text_encoder_2")
"""The components that have weights."""


def check_folder(folder: Path, name: str, *, weights: bool = True, own_transformer: bool = True) -> None:
    """Raise CheckpointUnavailable unless `folder` is a diffusers folder of FLUX.1-Kontext in safetensors.

    `name` is what messages call it. Without `weights` only its index is checked; without `own_transformer` the
    weights of the transformer may be missing.
    """
    index = folder / INDEX
    if not index.is_file():
        raise CheckpointUnavailable(
            f"{name} is not a diffusers folder, since it has no {INDEX}; give the folder that holds it, or use tiny."
        )
    try:
        pipeline = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, TypeError, KeyError):
        raise CheckpointUnavailable(f"The {INDEX} of {name} is damaged; download it again.") from None
    if pipeline != PIPELINE:
        raise CheckpointUnavailable(
            f"{name} is a {pipeline}, not a {PIPELINE}; use a FLUX.1-Kontext checkpoint or tiny."
        )
    if weights:
        for component in MODELS:
            if own_transformer or component != "transformer":
                _check_component(folder / component, name)


def _check_component(folder: Path, name: str) -> None:
    if weight_files(folder):
        return
    if any(folder.glob("*.bin")):
        raise CheckpointUnavailable(
            f"{name} has its {folder.name} only as a .bin file, which can run code when it is opened; "
            "convert it to safetensors."
        )
    raise CheckpointUnavailable(f"{name} has no weights for its {folder.name}; download it again, or use tiny.")


def weights_bytes(folder: Path) -> int:
    """Size on disk of all weights in `folder`."""
    return sum(file.stat().st_size for model in MODELS for file in weight_files(folder / model))


def load_folder(folder: Path, name: str, dtype: torch.dtype, *, transformer_file: Path | None = None) -> Any:
    """The `FluxKontextPipeline` of a checked `folder`, on the CPU. Raises CheckpointUnavailable."""
    from diffusers import FluxKontextPipeline

    with _loading_errors(name), _no_progress_bars():
        if transformer_file is None:
            return FluxKontextPipeline.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
        transformer = _load_transformer(transformer_file, folder, dtype)
        return FluxKontextPipeline.from_pretrained(
            folder, transformer=transformer, dtype=dtype, use_safetensors=True, local_files_only=True
        )


def _load_transformer(file: Path, folder: Path, dtype: torch.dtype) -> Any:
    """A transformer from one file with the keys of diffusers or of the original release; its shape is `folder`'s."""
    import torch
    from diffusers import FluxTransformer2DModel
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(file, framework="pt") as tensors:
        keys = set(tensors.keys())
        if any(tensors.get_slice(key).get_dtype().startswith("F8") for key in keys):
            raise CheckpointUnavailable(
                f"{file.name} holds float8 weights, whose scales have no common meaning; give a bfloat16 file."
            )
    if "transformer_blocks.0.attn.to_q.weight" not in keys:
        return FluxTransformer2DModel.from_single_file(
            str(file), config=str(folder), subfolder="transformer", dtype=dtype, local_files_only=True
        )
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(FluxTransformer2DModel.load_config(folder / "transformer"))
    weights = {key: tensor.to(dtype) for key, tensor in load_file(file).items()}
    transformer.load_state_dict(weights, assign=True)
    return transformer.eval()


@contextmanager
def _loading_errors(name: str) -> Iterator[None]:
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    # What diffusers, transformers and torch raise for missing, damaged and ill-shaped files.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        if is_out_of_host_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointUnavailable(
            f"{name} could not be loaded ({reason[:200]}); download it again, or use tiny."
        ) from error


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Loading is reported by whoever called, not by the bars of two libraries."""
    import diffusers.utils.logging
    import transformers.utils.logging

    active = [
        library
        for library in (diffusers.utils.logging, transformers.utils.logging)
        if library.is_progress_bar_enabled()
    ]
    for library in active:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in active:
            library.enable_progress_bar()


_SHA256 = re.compile(r"[0-9a-f]{64}")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files directly in `folder`, sorted by name."""
    return sorted(folder.glob("*.safetensors"))


def weights_sha256(files: list[Path]) -> str:
    """One hash of the contents of `files`: of the file itself where it is one, else of the files' hashes in order."""
    hashes = [_file_sha256(file) for file in files]
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _file_sha256(file: Path) -> str:
    # The cache of the Hub names a large file by its sha256 and links to it: no need to read 24 GB again.
    blob = file.resolve()
    if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
        return blob.name
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
