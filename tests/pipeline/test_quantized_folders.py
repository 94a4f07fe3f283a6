"""Folders whose transformer was saved quantized: plain techniques run it as stock does, others refuse it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kontext_fast.errors import InvalidInput, Refused
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.pipeline.edit import EditRequest, edit
from kontext_fast.pipeline.folder import TINY_FOLDER
from kontext_fast.pipeline.load import load
from tests import needs

PLAIN = ("prompt_cache", "reference_latents_cache", "device_pixels")
"""What computes nothing else, and so gives the same bits."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_FOLDER, tmp_path / "my-kontext"))


def image_of(pipe: Any) -> bytes:
    return edit(pipe, EditRequest("make it red", steps=1, seed=0)).image.tobytes()


@pytest.mark.slow
@needs.torchao
def test_folder_of_torchao_runs_plain_techniques(folder: Path) -> None:
    from diffusers import FluxTransformer2DModel, TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    place = folder / "transformer"
    config = TorchAoConfig(Int8WeightOnlyConfig())
    stock = FluxTransformer2DModel.from_pretrained(place, quantization_config=config, torch_dtype=torch.float32)
    shutil.rmtree(place)
    stock.save_pretrained(place)
    pipe = load(str(folder), device="cpu").pipe
    assert type(pipe.transformer.transformer_blocks[0].attn.to_q.weight).__name__ == "Int8Tensor"
    expected = image_of(pipe)
    for preset in PLAIN:
        with accelerate(pipe, preset, quiet=True):
            assert image_of(pipe) == expected, preset
    with pytest.raises(InvalidInput, match="the preset first_block_cache is left"):
        accelerate(pipe, "classic", quiet=True)
    with accelerate(pipe, "first_block_cache", quiet=True):
        assert image_of(pipe)
    with pytest.raises(InvalidInput, match="load the checkpoint without quantization"):
        accelerate(pipe, "balanced", quiet=True)
    assert image_of(pipe) == expected
    # Its own model is another one.
    pipe.transformer = stock
    assert image_of(pipe) == expected


@pytest.mark.parametrize(("method", "package"), [("bitsandbytes", "bitsandbytes"), ("quanto", "optimum-quanto")])
def test_missing_package_of_quantized_weights_is_named(
    folder: Path, method: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "transformer" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
    monkeypatch.setattr("kontext_fast.pipeline.folder.find_spec", lambda _: None)
    for checkpoint in (folder, folder / "transformer"):
        with pytest.raises(Refused, match=f"pip install {package}`, or give the checkpoint without quantization"):
            load(str(checkpoint), device="cpu")
    file.write_text(json.dumps(config))
    assert load(str(folder), device="cpu").pipe.transformer is not None
