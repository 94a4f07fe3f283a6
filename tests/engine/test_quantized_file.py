"""Quantized weights come back from disk bit for bit, for the weights they were made from and no others."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kontext_fast.engine.quantized_file import QuantizedFile, save
from kontext_fast.engine.weights import take_weights
from kontext_fast.errors import InvalidInput
from tests.engine.transformers import Shape, engine_on, random_transformer

SHAPE = Shape(double=1, single=1)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    file = tmp_path / "tiny-fp8.safetensors"
    with engine_on(random_transformer(SHAPE), "fp8") as engine:
        save(engine.weights, file)
    return file


def test_loaded_weights_equal_the_saved_ones(stored: Path) -> None:
    transformer = random_transformer(SHAPE)
    with engine_on(transformer, "fp8") as engine:
        fresh = engine.weights
    with ExitStack() as undo:
        file = QuantizedFile(stored, "fp8")
        loaded = take_weights(transformer, "fp8", undo, quantizer=file)
        file.require_made_from(loaded)
    assert loaded.quantized.keys() == fresh.quantized.keys()
    for name, matrix in loaded.quantized.items():
        assert matrix.values.dtype == torch.float8_e4m3fn
        assert torch.equal(matrix.values.view(torch.uint8), fresh.quantized[name].values.view(torch.uint8))
        assert torch.equal(matrix.scale, fresh.quantized[name].scale)
        assert matrix.dtype == torch.float32
    assert [one.name for one in stored.parent.iterdir()] == [stored.name]


@pytest.mark.parametrize("other", [Shape(double=1, single=1, heads=2), Shape(double=2, single=1), SHAPE])
def test_other_weights_are_refused(stored: Path, other: Shape) -> None:
    file, transformer = QuantizedFile(stored, "fp8"), random_transformer(other, seed=1)

    def load() -> None:
        with ExitStack() as undo:
            file.require_made_from(take_weights(transformer, "fp8", undo, quantizer=file))

    with pytest.raises(InvalidInput, match="made from other weights"):
        load()


@pytest.mark.parametrize("content", [None, b"", b"no safetensors"])
def test_missing_or_damaged_file_is_refused(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "x.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidInput, match="save_quantized"):
        QuantizedFile(file, "fp8")


def test_file_of_another_format_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1)}, file)
    with pytest.raises(InvalidInput, match="this version"):
        QuantizedFile(file, "fp8")


def test_failed_save_says_what_is_wrong(tmp_path: Path) -> None:
    with engine_on(random_transformer(SHAPE)) as engine, pytest.raises(InvalidInput, match="precision fp8"):
        save(engine.weights, tmp_path / "x.safetensors")
    with engine_on(random_transformer(SHAPE), "fp8") as engine, pytest.raises(InvalidInput, match="another place"):
        save(engine.weights, tmp_path / "missing" / "x.safetensors")
