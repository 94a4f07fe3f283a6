"""LoRA files for `tiny`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.pipelines import TINY

LAYER = "x_embedder"


def write_lora(path: Path, rank: int = 4) -> None:
    """One that changes the layer that reads the latents."""
    (weights,) = (TINY / "transformer").glob("*.safetensors")
    with safe_open(weights, "pt") as stored:
        rows, columns = stored.get_slice(f"{LAYER}.weight").get_shape()
    torch.manual_seed(0)
    name = f"transformer.{LAYER}"
    save_file(
        {f"{name}.lora_A.weight": torch.randn(rank, columns), f"{name}.lora_B.weight": torch.randn(rows, rank)}, path
    )
