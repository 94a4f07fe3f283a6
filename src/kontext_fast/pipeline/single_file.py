"""A transformer in a file or folder of its own, with the rest of its pipeline from the diffusers folder around it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kontext_fast.errors import CheckpointUnavailable, InvalidInput
from kontext_fast.pipeline.folder import (
    INDEX,
    TransformerFile,
    check_component,
    check_folder,
    class_of,
    load_folder,
    variant_of,
    weight_files,
    weights_bytes,
)
from kontext_fast.pipeline.hub import cached_folder
from kontext_fast.pipeline.load import FULL_SIZE_BYTES, KONTEXT_DEV, CheckpointSource, LoadedCheckpoint, Target

if TYPE_CHECKING:
    import torch

SUFFIXES = (".safetensors", ".gguf")


def _is_file(checkpoint: str) -> bool:
    return Path(checkpoint).expanduser().is_file()


def _load(checkpoint: str, target: Target) -> LoadedCheckpoint:
    from kontext_fast.pipeline.weights_file import open_weights, require_transformer

    path = Path(checkpoint).expanduser()
    if path.suffix not in SUFFIXES:
        raise CheckpointUnavailable(f"{checkpoint} is not a .safetensors or .gguf file; convert it, or use tiny.")
    try:
        require_transformer(open_weights(path))
    except InvalidInput as error:
        raise CheckpointUnavailable(str(error)) from error
    return _with_the_rest(TransformerFile(path, load_transformer, (path,)), checkpoint, target)


def _with_the_rest(transformer: TransformerFile, checkpoint: str, target: Target) -> LoadedCheckpoint:
    path = transformer.path
    folder = _folder_of_the_rest(path)
    if folder is None:
        raise CheckpointUnavailable(
            f"{checkpoint} is a transformer alone; put it into a diffusers folder of FLUX.1-Kontext, which has the "
            f"rest, or download {KONTEXT_DEV}."
        )
    check_folder(folder, str(folder), own_transformer=False)
    name = f"{path.parent.resolve().name}/{path.name}"
    return load_folder(folder, target, kind="folder", name=name, shown=checkpoint, transformer=transformer)


def _folder_of_the_rest(path: Path) -> Path | None:
    """The diffusers folder that has the other parts: the one around it, else FLUX.1-Kontext-dev in the local cache."""
    return path.parent if (path.parent / INDEX).is_file() else cached_folder(KONTEXT_DEV)


def _is_full_size(checkpoint: str) -> bool:
    from kontext_fast.pipeline.weights_file import open_weights

    path = Path(checkpoint).expanduser()
    if path.suffix not in SUFFIXES:
        return False
    # What is stored in 4 or 8 bits has 16 once it is loaded.
    return _has_full_size(path, 2 * sum(math.prod(stored.shape) for stored in open_weights(path).tensors.values()))


def _has_full_size(path: Path, transformer_bytes: int) -> bool:
    folder = _folder_of_the_rest(path)
    return transformer_bytes + (0 if folder is None else weights_bytes(folder, transformer=False)) >= FULL_SIZE_BYTES


SINGLE_FILE = CheckpointSource(
    name="a .safetensors or .gguf file inside one",
    kind="folder",
    precedence=20,
    matches=_is_file,
    full_size=_is_full_size,
    load=_load,
)


def _is_transformer_folder(checkpoint: str) -> bool:
    folder = Path(checkpoint).expanduser()
    return bool(checkpoint) and not (folder / INDEX).is_file() and class_of(folder) == "FluxTransformer2DModel"


def _load_transformer_folder(checkpoint: str, target: Target) -> LoadedCheckpoint:
    path = Path(checkpoint).expanduser().absolute()
    check_component(path, checkpoint)
    files = tuple(weight_files(path))
    return _with_the_rest(TransformerFile(path, _transformer_of_folder, files), checkpoint, target)


def _transformer_of_folder(path: Path, folder: Path, dtype: torch.dtype) -> tuple[Any, tuple[str, ...]]:
    """The transformer in the folder `path`, in `dtype`. Raises CheckpointUnavailable unless it fits `folder`."""
    from diffusers import FluxTransformer2DModel

    transformer, keys = FluxTransformer2DModel.from_pretrained(
        path,
        dtype=dtype,
        variant=variant_of(weight_files(path)),
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    for what in ("missing", "unexpected"):
        if names := sorted(keys[f"{what}_keys"]):
            raise CheckpointUnavailable(
                f"{path.name} has {len(names)} {what} weights, {names[0]} among them; copy it again, or give a folder "
                "that has the whole transformer."
            )
    own = FluxTransformer2DModel.load_config(folder / "transformer") if class_of(folder / "transformer") else {}
    for size in ("in_channels", "joint_attention_dim", "pooled_projection_dim"):
        if (has := transformer.config[size]) != (wanted := own.get(size, has)):
            raise CheckpointUnavailable(
                f"The transformer in {path.name} has {size} {has} and that of {folder.name} {wanted}; put it into the "
                "folder of its own pipeline."
            )
    return transformer, ()


TRANSFORMER_FOLDER = CheckpointSource(
    name="the folder of a transformer",
    kind="folder",
    precedence=10,
    matches=_is_transformer_folder,
    full_size=lambda checkpoint: _has_full_size(
        path := Path(checkpoint).expanduser().absolute(), sum(file.stat().st_size for file in weight_files(path))
    ),
    load=_load_transformer_folder,
)


def load_transformer(file: Path, folder: Path, dtype: torch.dtype) -> tuple[Any, tuple[str, ...]]:
    """A transformer in `dtype` from a file with the names of diffusers or of the original; its shape is `folder`'s.

    Every key of the file is used, or named among the sentences, or the file is refused: raises CheckpointUnavailable.
    """
    import torch
    from diffusers import FluxTransformer2DModel

    from kontext_fast.engine.weights import STORED_SCALES
    from kontext_fast.pipeline.layer_names import Piece, original_layers, split_rows
    from kontext_fast.pipeline.weights_file import account_for_scales, open_weights, transformer_prefix

    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(FluxTransformer2DModel.load_config(folder / "transformer"))
    wanted = {name: tensor.shape for name, tensor in transformer.state_dict().items()}
    config = transformer.config
    originals = original_layers(config.num_layers, config.num_single_layers)
    try:
        opened = open_weights(file)
        stored = account_for_scales(opened, transformer_prefix(opened, config.in_channels))
    except InvalidInput as error:
        raise CheckpointUnavailable(str(error)) from error
    weights: dict[str, torch.Tensor] = {}
    scales: dict[str, torch.Tensor] = {}
    for name, key in stored.weights.items():
        layer, _, part = name.rpartition(".")
        part = "weight" if part == "scale" else part
        pieces = originals.get(layer, (Piece(layer),))
        own = {piece.layer: wanted.get(f"{piece.layer}.{part}") for piece in pieces}
        if None in own.values():
            raise CheckpointUnavailable(
                f"{file.name} has {key}, which the transformer of {folder.name} does not; put it into the folder of "
                "its own pipeline."
            )
        try:
            rows_of = {layer: shape[0] for layer, shape in own.items() if shape is not None}
            if (of_rows := stored.row_scales(name)) is not None:
                scales |= {
                    f"{piece.layer}.{part}": rows.clone()
                    for piece, rows in split_rows(of_rows, pieces, rows_of)
                    if piece.half is None
                }
            for piece, values in split_rows(stored.values(name, dtype), pieces, rows_of):
                target = f"{piece.layer}.{part}"
                if values.shape[1:] != wanted[target][1:]:
                    raise ValueError(f"it is {list(values.shape)} instead of {list(wanted[target])}")
                if piece.half is None:
                    weights[target] = values.contiguous()
                else:
                    whole = weights.setdefault(target, torch.empty(wanted[target], dtype=dtype))
                    whole[piece.rows(len(whole))] = values
        except ValueError as error:
            raise CheckpointUnavailable(
                f"The {key} of {file.name} does not fit the transformer of {folder.name}, since {error}; put the file "
                "into the folder of its own pipeline."
            ) from error
    if missing := sorted(wanted.keys() - weights.keys()):
        raise CheckpointUnavailable(
            f"{file.name} lacks {len(missing)} of {len(wanted)} weights, {missing[0]} among them; "
            "copy it again, or give a file that has the whole transformer."
        )
    transformer.load_state_dict(weights, assign=True)
    setattr(transformer, STORED_SCALES, scales)
    return transformer.eval(), stored.unused
