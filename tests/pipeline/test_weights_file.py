"""A file of scaled float8, byte by byte, with the values that its numbers stand for computed by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from kontext_fast.pipeline.weights_file import account_for_scales, kind_of_file, open_weights

PER_TENSOR = (
    '{"__metadata__":{"format":"pt"},'
    '"scaled_fp8":{"dtype":"F8_E4M3","shape":[0],"data_offsets":[0,0]},'
    '"img_in.weight":{"dtype":"F8_E4M3","shape":[2,3],"data_offsets":[0,6]},'
    '"img_in.bias":{"dtype":"BF16","shape":[1],"data_offsets":[6,8]},'
    '"img_in.scale_weight":{"dtype":"F32","shape":[],"data_offsets":[8,12]}}'
)
# 0x38 is 0 0111 000: 2^(7-7) = 1. 0x44 is 0 1000 100: 2^1 * 1.5 = 3. 0xC4 is -3. 0x7E is 0 1111 110: 2^8 * 1.75 = 448.
# 0x01 is the smallest one, 2^-6 * 1/8 = 2^-9. 0x00 is 0. As bfloat16 0x3F80 is 1, as float32 0x3E800000 is 0.25.
STORED = bytes.fromhex("38 44 C4 7E 01 00")
ONE_BF16 = bytes.fromhex("80 3F")
QUARTER = bytes.fromhex("00 00 80 3E")
HALF = bytes.fromhex("00 00 00 3F")
TWO = bytes.fromhex("00 00 00 40")

PER_ROW = (
    '{"img_in.weight":{"dtype":"F8_E4M3","shape":[2,3],"data_offsets":[0,6]},'
    '"img_in.weight_scale":{"dtype":"F32","shape":[2],"data_offsets":[6,14]}}'
)


def write(path: Path, header: str, content: bytes) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + content)
    return path


def test_one_scale_multiplies_every_number(tmp_path: Path) -> None:
    file = write(tmp_path / "fp8_scaled.safetensors", PER_TENSOR, STORED + ONE_BF16 + QUARTER)
    stored = account_for_scales(open_weights(file), "")
    assert stored.weights.keys() == {"img_in.weight", "img_in.bias"}
    values = stored.values("img_in.weight", torch.float32)
    assert values.tolist() == [[0.25, 0.75, -0.75], [112.0, 0.00048828125, 0.0]]
    assert stored.values("img_in.bias", torch.float32).tolist() == [1.0]


def test_scales_of_rows_multiply_their_rows(tmp_path: Path) -> None:
    file = write(tmp_path / "fp8r.safetensors", PER_ROW, STORED + HALF + TWO)
    values = account_for_scales(open_weights(file), "").values("img_in.weight", torch.bfloat16)
    assert values.dtype == torch.bfloat16
    assert values.float().tolist() == [[0.5, 1.5, -1.5], [896.0, 0.00390625, 0.0]]


def test_e4m3_without_scales_is_what_it_says(tmp_path: Path) -> None:
    header = '{"img_in.weight":{"dtype":"F8_E4M3","shape":[2,3],"data_offsets":[0,6]}}'
    file = write(tmp_path / "fp8.safetensors", header, STORED)
    values = account_for_scales(open_weights(file), "").values("img_in.weight", torch.float32)
    assert values.tolist() == [[1.0, 3.0, -3.0], [448.0, 0.001953125, 0.0]]


@pytest.mark.parametrize("keys", [[], ["a"], ["weight"]])
def test_unknown_keys_are_of_no_kind(keys: list[str]) -> None:
    assert kind_of_file(keys) is None


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q5_0", "Q8_0", "IQ4_NL"])
def test_gguf_blocks_decode_as_their_authors_do(tmp_path: Path, kind: str) -> None:
    """Blocks of random bytes, so that every bit of a block counts; compared with the package gguf."""
    quantization = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[quantization]
    blocks = np.random.default_rng(0).integers(0, 256, (6, 512 // block * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "own.gguf", "flux")
    writer.add_tensor("img_in.weight", blocks, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    stored = account_for_scales(open_weights(tmp_path / "own.gguf"), "")
    with np.errstate(all="ignore"):
        meant = gguf.quants.dequantize(blocks, quantization)
    assert meant.shape == (6, 512)
    np.testing.assert_allclose(stored.values("img_in.weight", torch.float32).numpy(), meant, rtol=1e-6)
