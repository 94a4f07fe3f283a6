"""A transformer file with the keys of the original release, which fuses what diffusers keeps apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file

from kontext_fast.pipeline.folder import TINY_FOLDER
from kontext_fast.pipeline.load import load

WIDTH = 3072
"""The converter of diffusers knows no other, so that one block of each kind is the smallest possible model."""

Weights = dict[str, torch.Tensor]


def renamed(weights: Weights, old: str, new: str) -> Weights:
    return {f"{new}.{part}": weights[f"{old}.{part}"] for part in ("weight", "bias")}


def fused(weights: Weights, prefix: str, names: list[str], new: str) -> Weights:
    return {
        f"{new}.{part}": torch.cat([weights[f"{prefix}.{name}.{part}"] for name in names])
        for part in ("weight", "bias")
    }


def original_layout(weights: Weights) -> Weights:
    double, single = "transformer_blocks.0", "single_transformer_blocks.0"
    names = {
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "context_embedder": "txt_in",
        "x_embedder": "img_in",
        "proj_out": "final_layer.linear",
        f"{double}.norm1.linear": "double_blocks.0.img_mod.lin",
        f"{double}.norm1_context.linear": "double_blocks.0.txt_mod.lin",
        f"{double}.ff.net.0.proj": "double_blocks.0.img_mlp.0",
        f"{double}.ff.net.2": "double_blocks.0.img_mlp.2",
        f"{double}.ff_context.net.0.proj": "double_blocks.0.txt_mlp.0",
        f"{double}.ff_context.net.2": "double_blocks.0.txt_mlp.2",
        f"{double}.attn.to_out.0": "double_blocks.0.img_attn.proj",
        f"{double}.attn.to_add_out": "double_blocks.0.txt_attn.proj",
        f"{single}.norm.linear": "single_blocks.0.modulation.lin",
        f"{single}.proj_out": "single_blocks.0.linear2",
    }
    scales = {
        f"{double}.attn.norm_q": "double_blocks.0.img_attn.norm.query_norm",
        f"{double}.attn.norm_k": "double_blocks.0.img_attn.norm.key_norm",
        f"{double}.attn.norm_added_q": "double_blocks.0.txt_attn.norm.query_norm",
        f"{double}.attn.norm_added_k": "double_blocks.0.txt_attn.norm.key_norm",
        f"{single}.attn.norm_q": "single_blocks.0.norm.query_norm",
        f"{single}.attn.norm_k": "single_blocks.0.norm.key_norm",
    }
    original: Weights = {}
    for old, new in names.items():
        original |= renamed(weights, old, new)
    for old, new in scales.items():
        original[f"{new}.scale"] = weights[f"{old}.weight"]
    original |= fused(weights, f"{double}.attn", ["to_q", "to_k", "to_v"], "double_blocks.0.img_attn.qkv")
    added = ["add_q_proj", "add_k_proj", "add_v_proj"]
    original |= fused(weights, f"{double}.attn", added, "double_blocks.0.txt_attn.qkv")
    parts = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]
    original |= fused(weights, single, parts, "single_blocks.0.linear1")
    for part in ("weight", "bias"):
        scale, shift = weights[f"norm_out.linear.{part}"].chunk(2)
        original[f"final_layer.adaLN_modulation.1.{part}"] = torch.cat([shift, scale])
    return original


@pytest.mark.slow
def test_the_original_layout_is_converted(tmp_path: Path) -> None:
    folder = tmp_path / "kontext"
    shutil.copytree(TINY_FOLDER, folder, ignore=shutil.ignore_patterns("transformer"))
    config = json.loads((TINY_FOLDER / "transformer" / "config.json").read_text())
    config |= {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 24, "attention_head_dim": 128}
    config["axes_dims_rope"] = [16, 56, 56]
    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        shapes = FluxTransformer2DModel.from_config(config).to(torch.bfloat16).state_dict()
    weights = {name: torch.randn(shape.shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    file = folder / "original.safetensors"
    save_file({name: value.contiguous() for name, value in original_layout(weights).items()}, file)

    loaded = load(str(file), device="cpu", dtype="bfloat16")

    assert loaded.facts.name == "kontext/original.safetensors"
    tensors = loaded.pipe.transformer.state_dict()
    assert tensors.keys() == weights.keys()
    assert all(torch.equal(tensors[name], weights[name]) for name in weights)
