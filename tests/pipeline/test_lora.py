from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file

from kontext_fast.errors import InvalidInput, OutOfMemory
from kontext_fast.pipeline.edit import EditRequest, edit
from kontext_fast.pipeline.load import load
from kontext_fast.pipeline.lora import hash_with_loras, load_lora, load_with_loras
from tests.pipeline.refusals import refused_lora, state
from tests.server.loras import write_lora

TARGETS = ["to_q", "to_k", "to_out.0", "add_q_proj", "proj_mlp", "x_embedder"]


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA as peft and diffusers write it, with an alpha that is not its rank."""
    transformer = load("tiny", device="cpu").pipe.transformer
    config = LoraConfig(r=4, lora_alpha=12, target_modules=TARGETS, init_lora_weights=False)
    torch.manual_seed(0)
    transformer.add_adapter(config)
    folder = tmp_path_factory.mktemp("lora")
    FluxKontextPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        transformer_lora_adapter_metadata=config.to_dict(),
    )
    return folder / "pytorch_lora_weights.safetensors"


def run(pipe: Any, picture: Image.Image) -> np.ndarray[Any, Any]:
    image = edit(pipe, EditRequest("make it red", picture, steps=2, seed=0)).images[0]
    return np.asarray(image).astype(int)


def test_lora_changes_weights_as_diffusers_does(tiny: Any, lora: Path, picture: Image.Image) -> None:
    plain = run(tiny, picture)
    for strength in (1.0, 0.3):
        with load_lora(tiny, lora, strength):
            merged = run(tiny, picture)
        stock = load("tiny", device="cpu").pipe
        stock.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name="style")
        stock.set_adapters("style", strength)
        assert np.abs(merged - run(stock, picture)).max() <= 2
        assert np.abs(merged - plain).max() > 10


def test_removal_is_bit_identical_even_after_an_error(tiny: Any, lora: Path, picture: Image.Image) -> None:
    before, weights = run(tiny, picture), state(tiny)
    with load_lora(tiny, lora, 0.7):
        assert not torch.equal(tiny.transformer.x_embedder.weight, weights["transformer.x_embedder.weight"])
    with pytest.raises(KeyboardInterrupt), load_lora(tiny, str(lora)):
        raise KeyboardInterrupt
    after = state(tiny)
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    assert (run(tiny, picture) == before).all()


def test_two_loras_add_up_and_are_removed_in_reverse(tiny: Any, lora: Path) -> None:
    weights = state(tiny)["transformer.x_embedder.weight"]
    with load_lora(tiny, lora, 0.5):
        with load_lora(tiny, lora, 0.5):
            twice = tiny.transformer.x_embedder.weight.clone()
        once = tiny.transformer.x_embedder.weight.clone()
    torch.testing.assert_close(twice - once, once - weights, atol=1e-6, rtol=1e-4)
    assert torch.equal(tiny.transformer.x_embedder.weight, weights)


def test_failure_while_merging_changes_nothing(tiny: Any, lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kontext_fast.pipeline import lora as module

    weights = state(tiny)
    merge, merged = module._merge, []

    def fail_at_the_third(*args: Any) -> None:
        merged.append(args)
        if len(merged) == 3:
            raise MemoryError
        merge(*args)

    monkeypatch.setattr(module, "_merge", fail_at_the_third)
    with pytest.raises(OutOfMemory), load_lora(tiny, lora):
        pass
    monkeypatch.setattr(module, "_merge", merge)
    for error in (torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        monkeypatch.setattr(module, "_changed", Mock(side_effect=error))
        with pytest.raises(OutOfMemory), load_lora(tiny, lora):
            pass
    after = state(tiny)
    assert all(torch.equal(after[name], weights[name]) for name in weights)


def test_files_of_other_trainers_are_scaled_by_their_alpha(tiny: Any, tmp_path: Path) -> None:
    weight = tiny.transformer.transformer_blocks[0].attn.to_q.weight
    before = weight.clone()
    down, up = torch.randn(4, 160), torch.randn(160, 4)
    name = "transformer.transformer_blocks.0.attn.to_q"
    for extra, scale in (({}, 1.0), ({f"{name}.alpha": torch.tensor(2.0)}, 0.5)):
        save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up, **extra}, tmp_path / "a.safetensors")
        with load_lora(tiny, tmp_path / "a.safetensors"):
            torch.testing.assert_close(weight - before, scale * up @ down, atol=1e-5, rtol=1e-4)


def test_difference_of_a_bias_leaves_the_weight(tiny: Any, tmp_path: Path) -> None:
    layer = tiny.transformer.transformer_blocks[0].attn.to_q
    weight, bias = layer.weight.clone(), layer.bias.clone()
    difference = torch.randn_like(bias)
    file = tmp_path / "bias.safetensors"
    name = "transformer.transformer_blocks.0.attn.to_q"
    save_file(
        {f"{name}.diff_b": difference, f"{name}.alpha": torch.ones(()), f"{name}.lora_B.bias": torch.ones(2)}, file
    )
    with load_lora(tiny, file, 0.5):
        torch.testing.assert_close(layer.bias, bias + 0.5 * difference)
        assert torch.equal(layer.weight, weight)
    assert torch.equal(layer.bias, bias)


def test_refusal_names_the_file_the_layer_and_the_reason(tiny: Any, tmp_path: Path) -> None:
    file = tmp_path / "odd.safetensors"
    norm, query = "transformer.transformer_blocks.0.attn.norm_q", "transformer.transformer_blocks.0.attn.to_q"
    whole = {f"{query}.lora_A.weight": torch.zeros(2, 160), f"{query}.lora_B.weight": torch.zeros(160, 2)}
    for layer in (norm, "text_encoder.text_model.embeddings.token_embedding"):
        save_file({f"{layer}.diff_b": torch.zeros(32)}, file)
        assert refused_lora(tiny, file) == (
            f"{file} is a LoRA for another model, since {layer} does not fit (there is no plain bias to change); "
            "give another one."
        )
    save_file({f"{query}.diff": torch.zeros(2, 3)}, file)
    assert refused_lora(tiny, file) == (
        f"{file} is a LoRA for another model, since {query} does not fit (it is for shape [2, 3], and this layer has "
        "[160, 160]); give another one."
    )
    save_file({**whole, f"{query}.lora_magnitude_vector": torch.zeros(7)}, file)
    assert "to_q does not fit (its magnitudes are [7] for [160, 160]);" in refused_lora(tiny, file)
    save_file({f"{query}.lora_A.weight": torch.zeros(2, 160), f"{query}.alpha": torch.tensor(2.0)}, file)
    assert refused_lora(tiny, file) == (
        f"odd.safetensors is a LoRA for another model or not whole, since it has alpha, down alone of {query}; "
        "give another one."
    )
    for half in ("lora_A.weight", "alpha"):
        other = {} if half == "alpha" else {f"{query}.diff_b": torch.zeros(160)}
        save_file({f"{query}.{half}": torch.ones(()), **other}, file)
        assert f"alone of {query};" in refused_lora(tiny, file)
    save_file({**whole, "something.odd": torch.zeros(2)}, file)
    assert refused_lora(tiny, file) == (
        f"{file} is not a plain LoRA for FLUX.1-Kontext, since it holds something.odd; give another one."
    )


def test_lora_is_refused_on_fused_projections(tiny: Any, lora: Path) -> None:
    tiny.transformer.fuse_qkv_projections()
    try:
        with pytest.raises(InvalidInput, match="before accelerating"), load_lora(tiny, lora):
            pass
    finally:
        tiny.transformer.unfuse_qkv_projections()


@pytest.mark.parametrize("strength", [math.nan, math.inf, "strong"])
def test_strength_must_be_a_number(tiny: Any, lora: Path, strength: Any) -> None:
    with pytest.raises(InvalidInput, match="strength"), load_lora(tiny, lora, strength):
        pass


def test_file_for_another_model_is_refused(tiny: Any, lora: Path, tmp_path: Path) -> None:
    tensors = load_file(lora)
    name = next(key for key in tensors if key.endswith("lora_A.weight"))
    other = name.replace("lora_A", "lora_B")
    file = tmp_path / "wrong.safetensors"
    for changed, words in (
        ({"weight": torch.zeros(2)}, "has no LoRA layers, so it is not a plain LoRA for FLUX.1-Kontext; give another"),
        ({"x.lora_odd": torch.zeros(2)}, "has no LoRA layers, so"),
        ({**tensors, name: torch.zeros(4, 7)}, "another model"),
        ({**tensors, other: torch.zeros(7, 4)}, "another model"),
        ({key: value for key, value in tensors.items() if key != other}, "another model"),
        ({key.replace("transformer_blocks.0", "transformer_blocks.99"): tensors[key] for key in tensors}, "another"),
        ({**tensors, "transformer.x_embedder.lora_magnitude_vector": torch.zeros(7)}, "another model"),
        ({**tensors, "transformer.single_transformer_blocks.0.diff_b": torch.zeros(4)}, "no layer for"),
    ):
        save_file(changed, file)
        assert words in refused_lora(tiny, file)
    file.write_bytes(b"not safetensors")
    assert "could not be read" in refused_lora(tiny, file)
    assert "There is no LoRA" in refused_lora(tiny, tmp_path / "missing.safetensors")
    pickled = tmp_path / "lora.bin"
    pickled.write_bytes(b"")
    assert "not a .safetensors file" in refused_lora(tiny, pickled)


def test_checkpoint_with_loras_is_named_and_hashed_by_all_files(tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    write_lora(file)
    plain = load("tiny", device="cpu")
    weight = plain.pipe.transformer.x_embedder.weight.clone()
    with load_with_loras("tiny", [(str(file), 0.5)], device="cpu") as loaded:
        facts = loaded.facts
        assert facts.name == "tiny with style.safetensors:0.5"
        assert facts.has_judge
        assert not torch.equal(loaded.pipe.transformer.x_embedder.weight, weight)
    assert torch.equal(loaded.pipe.transformer.x_embedder.weight, weight)
    hashes = {plain.facts.weights_sha256, facts.weights_sha256}
    hashes.add(hash_with_loras(plain.facts.weights_sha256, [(str(file), 1.0)]))
    write_lora(file, rank=2)
    hashes.add(hash_with_loras(plain.facts.weights_sha256, [(str(file), 0.5)]))
    assert len(hashes) == 4
    with load_with_loras("tiny", [], device="cpu") as loaded:
        assert loaded.facts == plain.facts


def test_hash_is_of_weights_files_and_strengths(tmp_path: Path) -> None:
    def sha256(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    file = tmp_path / "a.safetensors"
    file.write_text("a")
    assert hash_with_loras("ab", [(file, 0.5)]) == sha256(f"ab\n{sha256('a')}:0.5")
    assert hash_with_loras(None, []) == sha256("")
