"""A transformer in one file: the names of the original release, scaled float8, GGUF, and what is no such file."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.techniques.engine import Engine, engine_of
from kontext_fast.pipeline.edit import EditRequest, edit
from kontext_fast.pipeline.folder import TINY_FOLDER
from kontext_fast.pipeline.load import load
from kontext_fast.pipeline.single_file import load_transformer
from tests.pipeline.refusals import refused_checkpoint

Weights = dict[str, torch.Tensor]

FP8 = torch.float8_e4m3fn


def renamed(weights: Weights, old: str, new: str) -> Weights:
    return {f"{new}.{part}": weights[f"{old}.{part}"] for part in ("weight", "bias")}


def fused(weights: Weights, prefix: str, names: list[str], new: str) -> Weights:
    return {
        f"{new}.{part}": torch.cat([weights[f"{prefix}.{name}.{part}"] for name in names])
        for part in ("weight", "bias")
    }


def original_layout(weights: Weights) -> Weights:
    """A transformer of one block of each kind under the names of the original release, written out by hand."""
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
    return {name: value.contiguous() for name, value in original.items()}


def make_folder(folder: Path, **config: Any) -> Path:
    """tiny with a transformer that is configured otherwise and has no weights."""
    shutil.copytree(TINY_FOLDER, folder, ignore=shutil.ignore_patterns("transformer"), copy_function=link)
    (folder / "transformer").mkdir()
    stock = json.loads((TINY_FOLDER / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps({**stock, **config}))
    return folder


def link(source: str, target: str) -> None:
    Path(target).symlink_to(source)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One block of each kind, 160 wide."""
    return make_folder(tmp_path / "kontext", num_layers=1, num_single_layers=1)


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Of tiny's first blocks, under the names of diffusers."""
    stored = load_file(TINY_FOLDER / "transformer" / "diffusion_pytorch_model.safetensors")
    return {name: value for name, value in stored.items() if "blocks." not in name or "blocks.0." in name}


def loaded_from(file: Path, dtype: torch.dtype = torch.bfloat16) -> tuple[Weights, tuple[str, ...]]:
    transformer, unused = load_transformer(file, file.parent, dtype)
    return transformer.state_dict(), unused


def write(folder: Path, tensors: Weights, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "own.safetensors", metadata)
    return folder / "own.safetensors"


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "transformer."])
@pytest.mark.parametrize("layout", [original_layout, dict], ids=["original", "diffusers"])
def test_names_of_either_release_give_equal_bits(
    folder: Path, weights: Weights, layout: Callable[[Weights], Weights], prefix: str
) -> None:
    file = write(folder, {prefix + name: value for name, value in layout(weights).items()})
    tensors, unused = loaded_from(file)
    assert tensors.keys() == weights.keys()
    assert all(torch.equal(tensors[name], weights[name]) for name in weights)
    assert unused == ()


def quantized(tensors: Weights, scale_name: str | None, *, per_row: bool) -> tuple[Weights, Weights]:
    """As a scaled float8 file stores matrices, and what they are: stored times scale."""
    stored, meant = dict(tensors), {name: value.float() for name, value in tensors.items()}
    for name, value in tensors.items():
        if value.dim() != 2:
            continue
        largest = value.float().abs().amax(dim=1) if per_row else value.float().abs().amax()
        scale = largest / 448 if scale_name else torch.ones(())
        column = scale[:, None] if per_row else scale
        stored[name] = (value.float() / column).to(FP8)
        meant[name] = stored[name].float() * column
        if scale_name:
            stored[f"{name.removesuffix('.weight')}.{scale_name}"] = scale
    return stored, meant


@pytest.mark.parametrize(
    ("scale_name", "per_row"), [("scale_weight", False), ("weight_scale", False), ("weight_scale", True), (None, False)]
)
def test_float8_is_multiplied_by_its_own_scales(
    folder: Path, weights: Weights, scale_name: str | None, per_row: bool
) -> None:
    stored, meant = quantized(original_layout(weights), scale_name, per_row=per_row)
    file = write(folder, {**stored, "scaled_fp8": torch.zeros(2, dtype=FP8)} if scale_name else stored)
    tensors, _ = loaded_from(file, torch.float32)
    plain, _ = loaded_from(write(folder, meant), torch.float32)
    assert all(torch.equal(tensors[name], plain[name]) for name in weights)
    close = tensors["transformer_blocks.0.attn.to_v.weight"] - weights["transformer_blocks.0.attn.to_v.weight"].float()
    assert close.abs().max() < 0.1 * weights["transformer_blocks.0.attn.to_v.weight"].float().abs().max()


def marker(kind: str) -> torch.Tensor:
    """How ComfyUI says what a layer is quantized to."""
    return torch.tensor(list(json.dumps({"format": kind}).encode()), dtype=torch.uint8)


def test_unused_keys_of_a_file_are_named(folder: Path, weights: Weights) -> None:
    prefix = "model.diffusion_model."
    stored, _ = quantized(original_layout(weights), "weight_scale", per_row=False)
    layer = "double_blocks.0.img_attn.qkv"
    own = {**stored, f"{layer}.input_scale": torch.ones(()), f"{layer}.comfy_quant": marker("float8_e4m3fn")}
    file = write(folder, {**{prefix + name: value for name, value in own.items()}, "vae.x": torch.ones(1)})
    _, unused = loaded_from(file)
    assert len(unused) == 2
    assert "1 scales of activations" in unused[0]
    assert "1 tensors of other models" in unused[1]


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_1", "Q4_0", "F16", "BF16", "F32"])
def test_gguf_holds_what_its_blocks_decode_to(folder: Path, weights: Weights, kind: str) -> None:
    quantization = gguf.GGMLQuantizationType[kind]
    file = folder / "own.gguf"
    writer = gguf.GGUFWriter(file, "flux")
    meant = {}
    for name, value in original_layout(weights).items():
        if value.dim() == 2:
            blocks = gguf.quants.quantize(value.float().numpy(), quantization)
            writer.add_tensor(name, blocks, raw_dtype=quantization)
            meant[name] = torch.from_numpy(gguf.quants.dequantize(blocks, quantization).astype(np.float32))
        else:
            writer.add_tensor(name, value.float().numpy())
            meant[name] = value.float()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors, _ = loaded_from(file, torch.float32)
    plain, _ = loaded_from(write(folder, meant), torch.float32)
    assert all(torch.equal(tensors[name], plain[name]) for name in weights)


def test_edits_of_a_float8_file_are_those_of_its_weights(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "kontext")
    stock = load_file(TINY_FOLDER / "transformer" / "diffusion_pytorch_model.safetensors")
    stored, meant = quantized(stock, "scale_weight", per_row=False)
    images = []
    for tensors in (stored, {name: value.to(torch.bfloat16) for name, value in meant.items()}):
        loaded = load(str(write(folder, tensors)), device="cpu", dtype="bfloat16")
        images.append(edit(loaded.pipe, EditRequest("make it red", steps=1, seed=0)).image.tobytes())
    assert loaded.facts.name == "kontext/own.safetensors"
    assert images[0] == images[1]


def bytes_of(values: torch.Tensor) -> list[int]:
    return values.contiguous().view(torch.uint8).flatten().tolist()


@pytest.mark.parametrize(("scale_name", "per_row"), [("scale_weight", False), ("weight_scale", True), (None, False)])
def test_engine_in_fp8_runs_the_numbers_of_the_file(
    tmp_path: Path, weights: Weights, scale_name: str | None, per_row: bool
) -> None:
    folder = make_folder(tmp_path / "kontext", num_layers=1, num_single_layers=1)
    stored, _ = quantized(original_layout(weights), scale_name, per_row=per_row)
    file = write(folder, stored)
    pipe = load(str(file), device="cpu", dtype="bfloat16").pipe
    width = pipe.transformer.inner_dim
    for copied in (pipe, copy.deepcopy(pipe)):
        with accelerate(copied, "balanced", quiet=True) as acceleration:
            matrices = engine_of(copied.transformer).engine.weights.quantized
            assert acceleration.facts["engine"]["as_stored"] == len(matrices) == 11
            assert "as_stored=11" in acceleration.describe()
            assert acceleration.facts["engine"]["mlp_scales"] == ("rows" if per_row else "static")
            kept = {name: bytes_of(matrix.values) for name, matrix in matrices.items()}
    assert kept["double.0.image.qkv"] == bytes_of(stored["double_blocks.0.img_attn.qkv.weight"])
    assert kept["double.0.text.mlp_out"] == bytes_of(stored["double_blocks.0.txt_mlp.2.weight"])
    linear1 = stored["single_blocks.0.linear1.weight"]
    assert kept["single.0.qkv"] == bytes_of(linear1[: 3 * width])
    assert kept["single.0.mlp_in"] == bytes_of(linear1[3 * width :])
    if scale_name is not None:
        scale = stored[f"single_blocks.0.linear1.{scale_name}"].expand(len(linear1))
        of_mlp = matrices["single.0.mlp_in"].scale[:, 0]
        assert len(of_mlp) == (4 * width if per_row else 1)
        assert torch.equal(of_mlp.expand(4 * width), scale[3 * width :])


def test_changed_matrices_of_a_float8_file_are_rounded_anew(folder: Path, weights: Weights) -> None:
    stored, _ = quantized(original_layout(weights), "scale_weight", per_row=False)
    pipe = load(str(write(folder, stored)), device="cpu", dtype="bfloat16").pipe
    with torch.no_grad():
        pipe.transformer.transformer_blocks[0].attn.to_q.weight.add_(0.01)
    mixed = Engine(precision="fp8", full_precision=(0,))
    for engine, kept in ((Engine(precision="fp8"), 10), (mixed, 10), (Engine(precision="int8"), None)):
        with accelerate(pipe, [engine], quiet=True) as acceleration:
            assert acceleration.facts["engine"]["as_stored"] == kept


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool], ids=str)
def test_integers_are_refused_by_their_precision(folder: Path, weights: Weights, dtype: torch.dtype) -> None:
    original = original_layout(weights)
    name = "single_blocks.0.linear2.weight"
    sentence = refused_checkpoint(write(folder, {**original, name: torch.ones(original[name].shape).to(dtype)}))
    assert name in sentence
    assert {"int8": "I8", "uint8": "U8", "int32": "I32", "bool": "BOOL"}[str(dtype).removeprefix("torch.")] in sentence


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("txt_in.weight_scale_2", torch.ones(()), "weight_scale_2"),
        ("txt_in.pre_quant_scale", torch.ones(160), "pre_quant_scale"),
        ("txt_in.weight_scale", torch.ones(7), "weight_scale is F32 [7] for [160, 128]"),
        ("txt_in.weight_scale", torch.ones(4, 4), "weight_scale is F32 [4, 4]"),
        ("nowhere.weight_scale", torch.ones(()), "belongs to no weight"),
        (
            "txt_in.comfy_quant",
            marker("int8_blockwise"),
            "int8_blockwise",
        ),
        ("txt_in.extra", torch.ones(1), "txt_in.extra"),
        ("double_blocks.7.img_mlp.0.weight", torch.ones(1), "double_blocks.7.img_mlp.0.weight"),
        ("img_in.weight", torch.ones(160, 384), "FLUX.1-Fill"),
        ("img_in.weight", torch.ones(160, 128), "Canny or Depth"),
        ("img_in.weight", torch.ones(16, 64), "16 rows instead of 160"),
        ("vector_in.in_layer.weight", torch.ones(160, 7), "[160, 7] instead of [160, 128]"),
    ],
)
def test_what_cannot_be_decoded_is_refused_by_its_key(
    folder: Path, weights: Weights, key: str, value: torch.Tensor, words: str
) -> None:
    assert words in refused_checkpoint(write(folder, {**original_layout(weights), key: value}))


@pytest.mark.parametrize(
    "missing", ["img_in.bias", "single_blocks.0.linear1.weight", "final_layer.adaLN_modulation.1.bias"]
)
def test_missing_weights_are_named(folder: Path, weights: Weights, missing: str) -> None:
    original = original_layout(weights)
    del original[missing]
    assert "lacks" in refused_checkpoint(write(folder, original))


@pytest.mark.parametrize("part", ["vae", "text_encoder", "text_encoder_2"])
def test_another_part_of_the_pipeline_is_named(folder: Path, part: str) -> None:
    source = next((TINY_FOLDER / part).glob("*.safetensors"))
    shutil.copy(source, folder / "part.safetensors")
    named = {"vae": "an autoencoder", "text_encoder": "a CLIP text encoder", "text_encoder_2": "a T5 text encoder"}
    assert named[part] in refused_checkpoint(folder / "part.safetensors")


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_double_blocks_0_img_mlp_0.lora_down.weight", "a LoRA; pass it as --lora"),
        ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "a LoRA; pass it as --lora"),
        ("double_stream_modulation_img.lin.weight", "a FLUX.2 transformer"),
        ("transformer_blocks.0.img_mod.1.weight", "a Qwen-Image transformer"),
        ("joint_blocks.0.x_block.attn.qkv.weight", "a Stable Diffusion 3 transformer"),
        ("model.diffusion_model.input_blocks.0.0.weight", "a Stable Diffusion UNet"),
        ("transformer_blocks.0.attn.to_q.weight.quant_state.bitsandbytes__nf4", "bitsandbytes' 4 bits"),
        ("transformer_blocks.0.qkv_proj.qweight", "nunchaku's 4 bits"),
        ("controlnet_x_embedder.weight", "a ControlNet"),
        ("words", "no model that is known here (its first key is words)"),
    ],
)
def test_a_file_is_called_what_it_is(folder: Path, key: str, kind: str) -> None:
    assert kind in refused_checkpoint(write(folder, {key: torch.ones(1)}))


def test_cut_off_files_are_refused(folder: Path, weights: Weights) -> None:
    file = write(folder, original_layout(weights))
    content = file.read_bytes()
    for length in (0, 4, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        assert "could not be read" in (sentence := refused_checkpoint(file)) or "cut off" in sentence
    other = folder / "own.gguf"
    other.write_bytes(b"GGUF" + bytes(30))
    assert "could not be read" in refused_checkpoint(other)


WIDTH = 3072
"""Of the full-size model."""


@pytest.mark.slow
def test_the_original_layout_is_converted_at_full_width(tmp_path: Path) -> None:
    size = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 24, "attention_head_dim": 128}
    folder = make_folder(tmp_path / "kontext", **size, axes_dims_rope=[16, 56, 56])
    with torch.device("meta"):
        config = json.loads((folder / "transformer" / "config.json").read_text())
        shapes = FluxTransformer2DModel.from_config(config).to(torch.bfloat16).state_dict()
    weights = {name: torch.randn(shape.shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    file = folder / "original.safetensors"
    save_file(original_layout(weights), file)
    stock = FluxTransformer2DModel.from_single_file(
        str(file), config=str(folder), subfolder="transformer", dtype=torch.bfloat16, local_files_only=True
    ).state_dict()

    loaded = load(str(file), device="cpu", dtype="bfloat16")

    tensors = loaded.pipe.transformer.state_dict()
    assert tensors["x_embedder.weight"].shape[0] == WIDTH
    assert tensors.keys() == stock.keys()
    assert all(torch.equal(tensors[name], stock[name]) for name in stock)
