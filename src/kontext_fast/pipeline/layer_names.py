"""What files call the layers of a FLUX.1 transformer: as diffusers does, or as the original release does.

The original joins what diffusers keeps apart, and has the halves of the last modulation in the other order. Its names
are those of https://github.com/black-forest-labs/flux, `src/flux/model.py`; what they are in diffusers is defined by
its `scripts/convert_flux_to_diffusers.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """Rows of a layer of diffusers that are rows of a stored layer, too."""

    layer: str
    """Its dotted name in the model."""
    half: int | None = None
    """Only its first (0) or second (1) half of rows."""

    def rows(self, total: int) -> slice:
        """Which of the `total` rows of the layer of diffusers."""
        if self.half is None:
            return slice(0, total)
        return slice(self.half * total // 2, (self.half + 1) * total // 2)


Pieces = tuple[Piece, ...]
"""What a stored layer consists of, from its first row on."""

_IMAGE = ("attn.to_q", "attn.to_k", "attn.to_v")
_TEXT = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")

_OUTER: Mapping[str, str] = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}

_DOUBLE: Mapping[str, Sequence[str]] = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": _IMAGE,
    "txt_attn.qkv": _TEXT,
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    # The trainer of XLabs names its layers by the class that holds them, and numbers them where there are two.
    "processor.qkv_lora1": _IMAGE,
    "processor.qkv_lora2": _TEXT,
    "processor.proj_lora1": ("attn.to_out.0",),
    "processor.proj_lora2": ("attn.to_add_out",),
}

_SINGLE: Mapping[str, Sequence[str]] = {
    "modulation.lin": ("norm.linear",),
    "linear1": (*_IMAGE, "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
    "processor.qkv": _IMAGE,
    "processor.proj": ("proj_out",),
}


def original_layers(double: int, single: int) -> dict[str, Pieces]:
    """The layers of the original release by their dotted names, for that many blocks of each kind."""
    layers: dict[str, Pieces] = {name: (Piece(layer),) for name, layer in _OUTER.items()}
    # The original multiplies by the second half of its rows, and diffusers by the first half of its own.
    layers["final_layer.adaLN_modulation.1"] = (Piece("norm_out.linear", half=1), Piece("norm_out.linear", half=0))
    for count, theirs, ours, table in (
        (double, "double_blocks", "transformer_blocks", _DOUBLE),
        (single, "single_blocks", "single_transformer_blocks", _SINGLE),
    ):
        for index in range(count):
            for name, parts in table.items():
                layers[f"{theirs}.{index}.{name}"] = tuple(Piece(f"{ours}.{index}.{part}") for part in parts)
    return layers


def split_rows(tensor: Tensor, pieces: Pieces, rows_of: Mapping[str, int]) -> Iterator[tuple[Piece, Tensor]]:
    """The rows of a stored `tensor` [rows, ...] that belong to each piece; `rows_of` are the rows of whole layers.

    Raises ValueError where it has another number of rows than its pieces.
    """
    import torch

    sizes = []
    for piece in pieces:
        rows = piece.rows(rows_of[piece.layer])
        sizes.append(rows.stop - rows.start)
    if tensor.shape[0] != sum(sizes):
        raise ValueError(f"it has {tensor.shape[0]} rows instead of {sum(sizes)}")
    yield from zip(pieces, torch.split(tensor, sizes), strict=True)
