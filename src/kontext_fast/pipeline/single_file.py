"""A transformer in one .safetensors file, inside the diffusers folder that has the rest of its pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kontext_fast.errors import CheckpointUnavailable
from kontext_fast.pipeline.folder import INDEX, TransformerFile, check_folder, load_folder, weights_bytes
from kontext_fast.pipeline.load import FULL_SIZE_BYTES, CheckpointSource, LoadedCheckpoint, Target

if TYPE_CHECKING:
    import torch


def _is_file(checkpoint: str) -> bool:
    return Path(checkpoint).expanduser().is_file()


def _load(checkpoint: str, target: Target) -> LoadedCheckpoint:
    path = Path(checkpoint).expanduser()
    folder = path.parent
    if path.suffix != ".safetensors":
        raise CheckpointUnavailable(f"{checkpoint} is not a .safetensors file; convert it, or use tiny.")
    if not (folder / INDEX).is_file():
        raise CheckpointUnavailable(
            f"{checkpoint} is a transformer alone; put it into a diffusers folder of FLUX.1-Kontext, "
            "which has the rest."
        )
    check_folder(folder, str(folder), own_transformer=False)
    name = f"{folder.resolve().name}/{path.name}"
    return load_folder(
        folder, target, kind="folder", name=name, shown=checkpoint, transformer=TransformerFile(path, _load_transformer)
    )


def _is_full_size(checkpoint: str) -> bool:
    path = Path(checkpoint).expanduser()
    return path.stat().st_size + weights_bytes(path.parent, transformer=False) >= FULL_SIZE_BYTES


SINGLE_FILE = CheckpointSource(
    name="a .safetensors file inside one",
    kind="folder",
    precedence=20,
    matches=_is_file,
    full_size=_is_full_size,
    load=_load,
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
