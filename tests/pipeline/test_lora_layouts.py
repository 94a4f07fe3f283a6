"""LoRA files as trainers write them: every name of every layer, every form of update, and no key passed over.

What a layer of the original release is in diffusers is written out by hand in `test_single_file.original_layout`. A
file whose matrices are a whole difference and the identity has a known result for every layer at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from kontext_fast.cli.session import Setup, open_session
from kontext_fast.optimizations.acceleration import current
from kontext_fast.pipeline.lora import distilled_hint, load_lora
from kontext_fast.pipeline.lora_file import read_lora
from tests.pipeline.refusals import refused_lora, state
from tests.pipeline.test_single_file import Weights, original_layout
from tests.pipelines import small_pipeline

LAYER = "transformer.transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def pipe() -> Any:
    return small_pipeline()


@pytest.fixture(autouse=True)
def restored(pipe: Any) -> Iterator[None]:
    """Every test leaves every bit as it was."""
    before = state(pipe)
    yield
    after = state(pipe)
    assert all(torch.equal(after[name], before[name]) for name in before)


def differences(model: Any, seed: int = 0) -> Weights:
    """A random change of every parameter."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator) for name, value in model.state_dict().items()}


def as_update(changes: Weights, rename: Callable[[str], str], down: str, up: str, alpha: str | None) -> Weights:
    """Matrices as a product with the identity, all others as a difference."""
    stored: Weights = {}
    for key, value in changes.items():
        layer, _, kind = key.rpartition(".")
        if kind == "bias":
            stored[f"{rename(layer)}.diff_b"] = value
        elif value.dim() == 1:
            stored[f"{rename(layer)}.diff"] = value
        else:
            stored |= {f"{rename(layer)}.{up}": value, f"{rename(layer)}.{down}": torch.eye(value.shape[1])}
            if alpha:
                stored[f"{rename(layer)}.{alpha}"] = torch.tensor(float(value.shape[1]))
    return {name: value.contiguous() for name, value in stored.items()}


def dotted(prefix: str) -> Callable[[str], str]:
    return lambda layer: prefix + layer


def underscored(prefix: str) -> Callable[[str], str]:
    return lambda layer: prefix + layer.replace(".", "_")


PEFT = ("lora_A.weight", "lora_B.weight", None)
KOHYA = ("lora_down.weight", "lora_up.weight", "alpha")

TRANSFORMER_NAMES = {
    "diffusers": (dict, dotted("transformer."), PEFT),
    "diffusers with alphas": (dict, dotted("transformer."), (*PEFT[:2], "alpha")),
    "no prefix": (dict, dotted(""), PEFT),
    "PEFT": (dict, dotted("base_model.model."), PEFT),
    "PEFT with the name of an adapter": (dict, dotted(""), ("lora_A.default.weight", "lora_B.default.weight", None)),
    "OneTrainer": (dict, underscored("lora_transformer_"), KOHYA),
    "LyCORIS": (dict, underscored("lycoris_"), KOHYA),
    "old diffusers": (dict, dotted("transformer."), ("lora.down.weight", "lora.up.weight", None)),
    "kohya": (original_layout, underscored("lora_unet_"), KOHYA),
    "ComfyUI": (original_layout, dotted("diffusion_model."), PEFT),
    "ComfyUI, a whole model": (original_layout, dotted("model.diffusion_model."), KOHYA),
    "fal": (original_layout, dotted("base_model.model."), PEFT),
    "original, no prefix": (original_layout, dotted(""), PEFT),
}


@pytest.mark.parametrize("names", TRANSFORMER_NAMES.values(), ids=TRANSFORMER_NAMES)
def test_every_layer_of_the_transformer_is_changed(pipe: Any, tmp_path: Path, names: Any) -> None:
    layout, rename, parts = names
    changes = differences(pipe.transformer)
    before = pipe.transformer.state_dict()
    expected = {name: before[name] + 0.5 * changes[name] for name in before}
    stored = {
        name.removesuffix(".scale") + ".weight" if name.endswith(".scale") else name: value
        for name, value in layout(changes).items()
    }
    save_file(as_update(stored, rename, *parts), tmp_path / "a.safetensors")
    with load_lora(pipe, tmp_path / "a.safetensors", 0.5) as unused:
        assert unused == ()
        after = pipe.transformer.state_dict()
        for name, value in expected.items():
            torch.testing.assert_close(after[name], value, atol=2e-5, rtol=1e-5, msg=name)


ENCODER_NAMES = {
    "kohya, CLIP": ("text_encoder", underscored("lora_te1_text_model_"), KOHYA),
    "kohya, CLIP alone": ("text_encoder", underscored("lora_te_text_model_"), KOHYA),
    "diffusers, CLIP": ("text_encoder", dotted("text_encoder.text_model."), PEFT),
    "diffusers without text_model": ("text_encoder", dotted("text_encoder."), PEFT),
    "ComfyUI, CLIP": ("text_encoder", dotted("text_encoders.clip_l.transformer.text_model."), KOHYA),
    "old diffusers": (
        "text_encoder",
        dotted("text_encoder.text_model."),
        ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight", None),
    ),
    "kohya, T5": ("text_encoder_2", underscored("lora_te3_"), KOHYA),
    "OneTrainer, T5": ("text_encoder_2", underscored("lora_te2_"), KOHYA),
    "diffusers, T5": ("text_encoder_2", dotted("text_encoder_2."), PEFT),
    "ComfyUI, T5": ("text_encoder_2", dotted("text_encoders.t5xxl.transformer."), KOHYA),
}


@pytest.mark.parametrize("names", ENCODER_NAMES.values(), ids=ENCODER_NAMES)
def test_layers_of_both_text_encoders_are_changed(pipe: Any, tmp_path: Path, names: Any) -> None:
    component, rename, parts = names
    model = getattr(pipe, component)
    changes = {name: value for name, value in differences(model).items() if "encoder." in name and "norm" not in name}
    before = model.state_dict()
    expected = {name: before[name] + changes[name] for name in changes}
    assert len(expected) > 4
    save_file(as_update(changes, rename, *parts), tmp_path / "a.safetensors")
    with load_lora(pipe, tmp_path / "a.safetensors"):
        after = model.state_dict()
        for name, value in expected.items():
            torch.testing.assert_close(after[name], value, atol=2e-5, rtol=1e-5, msg=name)


def test_layers_of_the_trainer_of_xlabs_are_changed(pipe: Any, tmp_path: Path) -> None:
    changes = differences(pipe.transformer)
    double, single = "transformer_blocks.0.attn", "single_transformer_blocks.0"
    layers = {
        "double_blocks.0.processor.qkv_lora1": [f"{double}.to_q", f"{double}.to_k", f"{double}.to_v"],
        "double_blocks.0.processor.qkv_lora2": [f"{double}.add_{part}_proj" for part in "qkv"],
        "double_blocks.0.processor.proj_lora1": [f"{double}.to_out.0"],
        "double_blocks.0.processor.proj_lora2": [f"{double}.to_add_out"],
        "single_blocks.0.processor.qkv_lora": [f"{single}.attn.to_{part}" for part in "qkv"],
        "single_blocks.0.processor.proj_lora": [f"{single}.proj_out"],
    }
    stored = {}
    for name, parts in layers.items():
        stored[f"{name}.up.weight"] = torch.cat([changes[f"{part}.weight"] for part in parts])
        stored[f"{name}.down.weight"] = torch.eye(stored[f"{name}.up.weight"].shape[1])
    save_file(stored, tmp_path / "a.safetensors")
    before = state(pipe)
    with load_lora(pipe, tmp_path / "a.safetensors"):
        after = pipe.transformer.state_dict()
        for part in (part for parts in layers.values() for part in parts):
            expected = before[f"transformer.{part}.weight"] + changes[f"{part}.weight"]
            torch.testing.assert_close(after[f"{part}.weight"], expected, atol=2e-5, rtol=1e-5)


TARGETS = ["to_q", "proj_mlp", "x_embedder", "linear_1"]
KINDS = {
    "LoRA": LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False),
    "LoRA with a bias": LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False, lora_bias=True),
    "rank-stabilized": LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False, use_rslora=True),
    "alphas of layers": LoraConfig(
        r=4, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False, alpha_pattern={"x_embedder": 1}
    ),
    "DoRA": LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False, use_dora=True),
    "LoHa": LoHaConfig(r=3, alpha=6, target_modules=TARGETS, init_weights=False),
    "LoKr": LoKrConfig(r=3, alpha=6, target_modules=TARGETS, init_weights=False),
    "LoKr, both factors split": LoKrConfig(
        r=2, alpha=6, target_modules=TARGETS, init_weights=False, decompose_both=True, decompose_factor=8
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_update_is_what_peft_makes_of_it(pipe: Any, tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    wrapped = get_peft_model(small_pipeline().transformer, KINDS[kind])
    for name, parameter in wrapped.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.3 * torch.rand_like(parameter)
    wrapped.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert len(stored) == len(get_peft_model_state_dict(wrapped))
    merged = wrapped.merge_and_unload().state_dict()
    with load_lora(pipe, tmp_path):
        after = pipe.transformer.state_dict()
        assert not torch.equal(after["x_embedder.weight"], small_pipeline().transformer.x_embedder.weight)
        for name, value in merged.items():
            torch.testing.assert_close(after[name], value, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("axis", "layer", "name"),
    [
        (0, "ff.net.2", "lora_unet_double_blocks_0_img_mlp_2"),
        (1, "ff.net.2", "lora_unet_double_blocks_0_img_mlp_2"),
        (1, "attn.to_q", LAYER),  # as many rows as columns
    ],
)
def test_dora_of_kohya_rescales_rows_or_columns(pipe: Any, tmp_path: Path, axis: int, layer: str, name: str) -> None:
    changed = pipe.transformer.transformer_blocks[0].get_submodule(layer).weight
    weight = changed.data.clone()
    rows, columns = weight.shape
    magnitude = torch.rand(rows, 1) if axis == 0 else torch.rand(1, columns)
    down, up = torch.randn(2, columns), torch.randn(rows, 2)
    save_file(
        {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.dora_scale": magnitude},
        tmp_path / "a.safetensors",
    )
    sum_of_both = weight + up @ down
    whole = magnitude * sum_of_both / sum_of_both.norm(dim=1 - axis, keepdim=True)
    for strength in (1.0, 0.25):
        with load_lora(pipe, tmp_path / "a.safetensors", strength):
            expected = weight + strength * (whole - weight)
            torch.testing.assert_close(changed.data, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("parts", "scale"),
    [
        ({"lokr_w1": (4, 4), "lokr_w2": (40, 40)}, 1.0),
        ({"lokr_w1_a": (4, 3), "lokr_w1_b": (3, 4), "lokr_w2": (40, 40)}, 2.0),
        ({"lokr_w1": (4, 4), "lokr_w2_a": (40, 2), "lokr_w2_b": (2, 40)}, 3.0),
    ],
)
def test_alpha_is_divided_by_the_rank_of_a_split_factor(
    pipe: Any, tmp_path: Path, parts: dict[str, tuple[int, int]], scale: float
) -> None:
    stored = {f"{LAYER}.{name}": torch.zeros(shape) for name, shape in parts.items()}
    file = tmp_path / "a.safetensors"
    save_file({**stored, f"{LAYER}.alpha": torch.tensor(6.0)}, file)
    assert [update.scale for update in read_lora(pipe, file)[0]] == [scale]


def test_settings_that_are_none_are_passed_over_or_refused(pipe: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file(plain(pipe), file, metadata={"lora_adapter_metadata": "[]"})
    assert [update.scale for update in read_lora(pipe, file)[0]] == [1.0]
    save_file(plain(pipe), file, metadata={"lora_adapter_metadata": "{"})
    assert refused_lora(pipe, file) == f"The settings of {file} cannot be read; copy the LoRA again."


def plain(pipe: Any, name: str = LAYER) -> Weights:
    rows, columns = pipe.transformer.transformer_blocks[0].attn.to_q.weight.shape
    return {f"{name}.lora_A.weight": torch.randn(2, columns), f"{name}.lora_B.weight": torch.randn(rows, 2)}


def test_no_damaged_key_is_passed_over(pipe: Any, tmp_path: Path) -> None:
    """Valid keys with one character taken out, put in or changed."""
    chance = random.Random(0)
    names = [
        "lora_unet_final_layer_adaLN_modulation_1.lora_down.weight",
        "transformer.single_transformer_blocks.0.proj_out.lora_A.weight",
        "diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.dora_scale",
        "lora_unet_single_blocks_0_linear1.lokr_w1",
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight",
    ]
    for _ in range(60):
        key = chance.choice(names)
        place = chance.randrange(len(key))
        changed = chance.choice([key[:place] + key[place + 1 :], key[:place] + "x" + key[place:], key + ".x"])
        save_file({**plain(pipe), changed: torch.zeros(2, 2)}, tmp_path / "a.safetensors")
        assert changed.split(".")[0] in refused_lora(pipe, tmp_path / "a.safetensors")


@pytest.mark.parametrize("left_out", ["lora_A.weight", "lora_B.weight"])
def test_half_an_update_is_refused(pipe: Any, tmp_path: Path, left_out: str) -> None:
    save_file({key: value for key, value in plain(pipe).items() if left_out not in key}, tmp_path / "a.safetensors")
    assert "alone" in refused_lora(pipe, tmp_path / "a.safetensors")


def test_two_updates_of_one_layer_are_refused(pipe: Any, tmp_path: Path) -> None:
    save_file({**plain(pipe), **plain(pipe, f"base_model.model.{LAYER}")}, tmp_path / "a.safetensors")
    with load_lora(pipe, tmp_path / "a.safetensors"):
        pass  # two names of one layer add up
    save_file({**plain(pipe), **plain(pipe, LAYER.replace(".attn", "_attn"))}, tmp_path / "a.safetensors")
    assert "two updates" in refused_lora(pipe, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("lora_unet_input_blocks_4_1_proj_in.lora_down.weight", "Stable Diffusion"),
        ("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight", "FLUX.2"),
        ("transformer.transformer_blocks.0.img_mlp.net.2.lora_A.weight", "Qwen-Image"),
        ("diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight", "Stable Diffusion 3"),
        ("diffusion_model.blocks.0.cross_attn.q.lora_A.weight", "Wan"),
        ("lora_unet_double_blocks_40_img_mlp_0.lora_down.weight", "no layer for lora_unet_double_blocks_40_img_mlp_0"),
        ("text_encoder_2.x.lora_A.weight", "no layer for text_encoder_2.x"),
        ("decoder.conv_in.weight", "is an autoencoder"),
        ("double_stream_modulation_img.lin.weight", "is a FLUX.2 transformer"),
    ],
)
def test_lora_of_another_model_is_called_what_it_is(pipe: Any, tmp_path: Path, key: str, words: str) -> None:
    save_file({key: torch.zeros(2, 2)}, tmp_path / "a.safetensors")
    assert words in refused_lora(pipe, tmp_path / "a.safetensors")


def test_parts_that_a_pipeline_lacks_are_named(pipe: Any, tmp_path: Path) -> None:
    for prefix, component in (("lora_te1_text_model", "text_encoder"), ("text_encoder_2", "text_encoder_2")):
        save_file({**plain(pipe), f"{prefix}.x.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "a.safetensors")
        _, unused = read_lora(SimpleNamespace(transformer=pipe.transformer), tmp_path / "a.safetensors")
        assert unused == (f"1 tensors of the {component} are not used: the pipeline has none",)
        model = getattr(pipe, component)
        setattr(pipe, component, None)
        try:
            with load_lora(pipe, tmp_path / "a.safetensors") as unused:
                assert unused == (f"1 tensors of the {component} are not used: the pipeline has none",)
        finally:
            setattr(pipe, component, model)


def test_encoder_is_updated_where_another_is_absent(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = pipe.text_encoder_2.encoder.block[0].layer[0].SelfAttention.q.weight
    before, difference = weight.clone(), torch.ones_like(weight)
    save_file({"text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.diff": difference}, tmp_path / "a.safetensors")
    monkeypatch.setattr(pipe, "text_encoder", None)
    with load_lora(pipe, tmp_path / "a.safetensors") as unused:
        assert unused == ()
        torch.testing.assert_close(weight, before + difference)


def test_trained_words_of_a_file_are_named(pipe: Any, tmp_path: Path) -> None:
    save_file({**plain(pipe), "bundle_emb.cat.string_to_param": torch.zeros(2, 2)}, tmp_path / "a.safetensors")
    with load_lora(pipe, tmp_path / "a.safetensors") as unused:
        assert len(unused) == 1
        assert "trained words" in unused[0]


def test_folder_of_several_files_is_refused(pipe: Any, tmp_path: Path) -> None:
    assert "has 0 .safetensors files" in refused_lora(pipe, tmp_path)
    for name in ("a", "b"):
        save_file(plain(pipe), tmp_path / f"{name}.safetensors")
    assert "has 2 .safetensors files" in refused_lora(pipe, tmp_path)


def test_a_second_lora_of_a_command_adds_to_the_first(pipe: Any, tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        files.append(tmp_path / f"{name}.safetensors")
        save_file(plain(pipe), files[-1])
    stock = small_pipeline().transformer.transformer_blocks[0].attn.to_q.weight.data
    loras = tuple(f"{file}:{strength}" for file, strength in zip(files, (0.5, 2.0), strict=True))
    with open_session(Setup(checkpoint="tiny", preset="baseline", lora=loras, device="cpu")) as session:
        changed = session._loaded.pipe.transformer.transformer_blocks[0].attn.to_q.weight.data
        expected = stock.clone()
        for file, strength in zip(files, (0.5, 2.0), strict=True):
            tensors = load_file(file)
            expected += strength * tensors[f"{LAYER}.lora_B.weight"] @ tensors[f"{LAYER}.lora_A.weight"]
        torch.testing.assert_close(changed, expected, atol=1e-5, rtol=1e-5)


def test_a_command_reverts_only_where_a_lora_has_to_be_taken_off(pipe: Any, tmp_path: Path) -> None:
    save_file(plain(pipe), file := tmp_path / "a.safetensors")
    stock = small_pipeline().transformer.transformer_blocks[0].attn.to_q.weight.data
    for loras in ((), (f"{file}:1",)):
        with open_session(Setup(checkpoint="tiny", preset="faithful", lora=loras, device="cpu")) as session:
            used = session._loaded.pipe
        assert (current(used) is None) == bool(loras)
    assert torch.equal(used.transformer.transformer_blocks[0].attn.to_q.weight.data, stock)


@pytest.mark.parametrize(
    ("path", "strength", "steps", "hint"),
    [
        ("Hyper-FLUX.1-dev-8steps-lora.safetensors", 1.0, 28, "strength 0.125 with 8 steps"),
        ("loras/Hyper-FLUX.1-dev-16steps-lora.safetensors", 0.125, 8, "strength 0.125 with 16 steps"),
        ("Hyper-FLUX.1-dev-8steps-lora.safetensors", 0.125, 8, None),
        ("FLUX.1-Turbo-Alpha/diffusion_pytorch_model.safetensors", 1.0, 28, "strength 1 with 8 steps"),
        ("FLUX.1-Turbo-Alpha/diffusion_pytorch_model.safetensors", 1.0, 8, None),
        ("/FLUX.1-Turbo-Alpha/a.safetensors", 1.0, 28, "strength 1 with 8 steps"),
        ("FLUX.1-Turbo-Alpha/old/copies/a.safetensors", 1.0, 28, None),
        ("style.safetensors", 1.0, 28, None),
    ],
)
def test_distilled_loras_get_the_hint_of_their_authors(
    path: str, strength: float, steps: int, hint: str | None
) -> None:
    sentence = distilled_hint(path, strength, steps)
    assert (sentence is None) == (hint is None)
    assert hint is None or hint in str(sentence)
