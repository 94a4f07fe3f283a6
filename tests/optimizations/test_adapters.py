"""Adapters that PEFT loaded on a pipeline: merged while it is accelerated, exchanged, and back as they were."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.adapters import check_names, merge_adapters
from kontext_fast.optimizations.call_tracking import CallTracker
from tests.pipelines import render, small_pipeline

TARGETS = ["to_q", "to_out.0", "add_k_proj", "proj_mlp", "x_embedder"]
IGNORED = (
    r"^The adapters are merged, so a scale of 0\.5 in joint_attention_kwargs would be ignored; leave it out and give "
    r"strengths to acceleration\.set_adapters\(names, strengths\)\.$"
)
PRESETS = ("balanced", *(pytest.param(name, marks=pytest.mark.slow) for name in ("faithful", "fuse_qkv", "classic")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two LoRAs, of which `line` is a DoRA."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, dora) in enumerate({"style": False, "line": True}.items()):
        transformer = small_pipeline().transformer
        torch.manual_seed(seed)
        transformer.add_adapter(
            LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights=False, use_dora=dora)
        )
        stored = {f"transformer.{key}": value for key, value in get_peft_model_state_dict(transformer).items()}
        save_file({key: value.contiguous() for key, value in stored.items()}, folder / f"{name}.safetensors")
    return folder


def with_adapters(folder: Path) -> Any:
    pipe = small_pipeline()
    for name in ("style", "line"):
        pipe.load_lora_weights(folder, weight_name=f"{name}.safetensors", adapter_name=name)
    pipe.set_adapters("style")
    return pipe


@pytest.fixture
def pipe(folder: Path) -> Iterator[Any]:
    """With both, of which `style` is active. Whatever happens, a reverted pipeline is what it was, bit for bit."""
    pipe = with_adapters(folder)
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    yield pipe
    after = pipe.transformer.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def difference(first: Any, second: Any) -> float:
    return float(np.abs(first - second).mean())


@pytest.mark.parametrize("preset", PRESETS)
def test_loaded_adapters_are_merged_and_exchanged(pipe: Any, folder: Path, preset: str) -> None:
    stock = with_adapters(folder)
    acceleration = accelerate(pipe, preset, quiet=True)
    assert acceleration.adapters == ("style",)
    assert not any(isinstance(module, BaseTunerLayer) for module in pipe.transformer.modules())
    for names, strengths in (("style", None), ("line", 0.5), (["style", "line"], [0.5, 1.0]), ("style", None)):
        if acceleration.adapters != ("style",) or names != "style":
            acceleration.set_adapters(names, strengths)
        stock.set_adapters(names, strengths)
        plain = small_pipeline()
        accelerate(plain, preset, quiet=True)
        with_them, without = difference(render(pipe), render(stock)), difference(render(plain), render(stock))
        assert with_them < 0.3 * without
        assert acceleration.adapters == tuple([names] if isinstance(names, str) else names)
    acceleration.revert()
    np.testing.assert_array_equal(render(pipe), render(stock))


def test_what_keeps_the_layers_keeps_their_adapters(pipe: Any) -> None:
    before = render(pipe)
    with accelerate(pipe, "prompt_cache", quiet=True) as acceleration:
        assert acceleration.adapters == ()
        np.testing.assert_array_equal(render(pipe), before)
        acceleration.set_adapters("line")
        assert not np.array_equal(render(pipe), before)
    pipe.set_adapters("style")
    np.testing.assert_array_equal(render(pipe), before)


def test_set_adapters_of_the_pipeline_exchanges_them_too(pipe: Any, folder: Path) -> None:
    acceleration = accelerate(pipe, "faithful", quiet=True)
    pipe.set_adapters(["line"], adapter_weights=[0.5])
    assert acceleration.adapters == ("line",)
    first = render(pipe)
    acceleration.set_adapters("line", 0.5)
    np.testing.assert_array_equal(render(pipe), first)
    acceleration.revert()
    stock = with_adapters(folder)
    stock.set_adapters("line", 0.5)
    np.testing.assert_array_equal(render(pipe), render(stock))
    pipe.set_adapters("style")


def test_two_pipelines_on_one_transformer_follow(pipe: Any) -> None:
    first = accelerate(pipe, "faithful", quiet=True)
    other = copy.copy(pipe)
    other.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    second = accelerate(other, "faithful", quiet=True)
    second.set_adapters("line")
    assert first.adapters == second.adapters == ("line",)
    np.testing.assert_array_equal(render(pipe), render(other))
    first.revert()
    assert render(other).shape
    second.revert()
    pipe.set_adapters("style")


def test_copies_and_pickles_have_the_adapters_unmerged(pipe: Any, folder: Path) -> None:
    stock = render(with_adapters(folder))
    with accelerate(pipe, "balanced", quiet=True):
        duplicate = copy.deepcopy(pipe)
        np.testing.assert_array_equal(render(duplicate), stock)
        duplicate.set_adapters("line")


class Small:
    """A pipeline as far as adapters are concerned: the transformer is a few layers."""

    def __init__(self, *adapters: str) -> None:
        torch.manual_seed(0)
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        self.transformer: Any = torch.nn.ModuleDict(
            {"a": torch.nn.Linear(4, 3), "b": torch.nn.Linear(3, 4, bias=False), "other": torch.nn.Linear(4, 4)}
        )
        for name in adapters:
            self.load(name)

    def load(self, name: str) -> None:
        config = LoraConfig(r=2, target_modules=["a", "b"], init_lora_weights=False)
        inject_adapter_in_model(config, self.transformer, name)

    def merge(self, undo: ExitStack) -> tuple[str, ...]:
        self.calls = CallTracker()
        return merge_adapters(self, self.calls, undo)

    def outputs(self) -> list[Any]:
        inputs = torch.eye(4)
        return [self.transformer["a"](inputs), self.transformer["b"](inputs[:, :3])]


def by_hand(pipe: Small) -> None:
    for name in ("a", "b"):
        pipe.transformer[name].merge()


def disabled(pipe: Small) -> None:
    for name in ("a", "b"):
        pipe.transformer[name].enable_adapters(enabled=False)


def as_loaded(pipe: Small) -> None:
    pass


@pytest.mark.parametrize("change", [as_loaded, by_hand, disabled])
def test_plain_layers_compute_what_the_wrapped_ones_do(change: Any) -> None:
    pipe = Small("style")
    change(pipe)
    wrapped = [pipe.transformer[name] for name in ("a", "b")]
    merged_before = [layer.merged for layer in wrapped]
    before = {name: parameter.clone() for name, parameter in pipe.transformer.named_parameters()}
    expected = pipe.outputs()
    with ExitStack() as undo:
        pipe.merge(undo)
        for name, bias in (("a", True), ("b", False)):
            plain = pipe.transformer[name]
            assert type(plain) is torch.nn.Linear
            assert (plain.bias is not None) == bias
            assert not any(parameter.requires_grad for parameter in plain.parameters())
        for now, then in zip(pipe.outputs(), expected, strict=True):
            torch.testing.assert_close(now, then)
    assert [pipe.transformer[name] for name in ("a", "b")] == wrapped
    assert [layer.merged for layer in wrapped] == merged_before
    for name, parameter in pipe.transformer.named_parameters():
        assert torch.equal(parameter, before[name])
    assert all(map(torch.equal, pipe.outputs(), expected))


def test_merging_draws_no_random_numbers() -> None:
    """A latent that is drawn afterwards, without a generator, is the one that it would have been."""
    pipe = Small("style")
    before = torch.get_rng_state()
    with ExitStack() as undo:
        pipe.merge(undo)
        assert torch.equal(torch.get_rng_state(), before)


def test_active_adapters_are_named_once() -> None:
    pipe = Small("style", "line", "spare")
    for name in ("a", "b"):
        pipe.transformer[name].set_adapter(["style", "line"])
    with ExitStack() as undo:
        assert pipe.merge(undo) == ("style", "line")


class Linear4bit(torch.nn.Linear):
    """Of another library, by its name."""


def of_another_class(layer: Any) -> None:
    layer.__class__ = Linear4bit


def of_whole_numbers(layer: Any) -> None:
    layer.weight = torch.nn.Parameter(layer.weight.data.to(torch.int8), requires_grad=False)


@pytest.mark.parametrize(("change", "kind"), [(of_another_class, "Linear4bit"), (of_whole_numbers, "Linear")])
def test_adapter_of_a_quantized_layer_is_refused(change: Any, kind: str) -> None:
    pipe = Small("style")
    change(pipe.transformer["a"].get_base_layer())
    with ExitStack() as undo, pytest.raises(InvalidInput) as caught:
        pipe.merge(undo)
    assert str(caught.value) == (
        f"An adapter is on a {kind}, which has no plain weights to merge it into; load the checkpoint without "
        "quantization, or take the adapter off (pipe.unload_lora_weights())."
    )


@pytest.mark.parametrize("given", [{}, {"joint_attention_kwargs": None}, {"joint_attention_kwargs": {"scale": 1}}])
def test_scale_of_one_is_no_scale(given: dict[str, Any]) -> None:
    pipe = Small("style")
    with ExitStack() as undo:
        pipe.merge(undo)
        with pipe.calls.open(pipe, given):
            pass
        refused = {**given, "joint_attention_kwargs": {"scale": 0.5}}
        with pytest.raises(InvalidInput, match=IGNORED), pipe.calls.open(pipe, refused):
            pass


REFUSED = ("load_lora_weights", "unload_lora_weights", "fuse_lora", "unfuse_lora")
REFUSED += ("disable_lora", "enable_lora", "delete_adapters")


def test_other_changes_of_adapters_are_refused() -> None:
    pipe, calls = small_pipeline(), CallTracker()
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    with ExitStack() as undo:
        merge_adapters(pipe, calls, undo)
        calls.attach(pipe)
        for name in REFUSED:
            with pytest.raises(InvalidInput) as caught:
                getattr(pipe, name)("any", value=1)
            assert str(caught.value) == (
                f"The adapters are merged while the pipeline is accelerated; call revert(), then {name}, then "
                "accelerate again, or exchange adapters that are loaded by acceleration.set_adapters(names, strengths)."
            )
    for name in REFUSED:
        assert getattr(type(pipe), name) is getattr(type(pipe).__mro__[1], name)
    calls.detach(pipe)


def test_adapters_must_be_loaded_and_have_a_strength_each() -> None:
    pipe = small_pipeline()
    for name in ("style", "line"):
        pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), name)
    check_names(pipe, ["style", "line"], [1.0, 0.5])
    for names, strengths, words in (
        (["style", "zz"], [1.0, 1.0], r"^There is no adapter 'zz'; choose one of line, style\.$"),
        (["style"], [1.0, 2.0], r"^There are 2 strengths for 1 adapters; give one for each\.$"),
    ):
        with pytest.raises(InvalidInput, match=words):
            check_names(pipe, names, strengths)


def test_mistakes_leave_everything_as_it_was(pipe: Any) -> None:
    acceleration = accelerate(pipe, "faithful", quiet=True)
    before = render(pipe)
    for names, strengths, words in (
        ("other", None, "There is no adapter 'other'"),
        (["style", "line"], [1.0], r"^There are 1 strengths for 2 adapters; give one for each\.$"),
    ):
        with pytest.raises(InvalidInput, match=words):
            acceleration.set_adapters(names, strengths)
    with pytest.raises(InvalidInput, match=IGNORED):
        pipe(prompt="x", height=64, width=64, num_inference_steps=1, joint_attention_kwargs={"scale": 0.5})
    np.testing.assert_array_equal(render(pipe), before)
    acceleration.revert()
    with pytest.raises(InvalidInput, match="was reverted"):
        acceleration.set_adapters("style")


def test_adapter_of_a_pipeline_without_any_is_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        check_names(small_pipeline(), ["style"], [1.0])
    assert str(caught.value) == "There is no adapter 'style'; choose one of none: load them, then accelerate again."


def test_adapters_of_baseline_stay_on_their_layers(pipe: Any, folder: Path) -> None:
    with accelerate(pipe, "baseline", quiet=True) as acceleration:
        assert acceleration.adapters == ()
        np.testing.assert_array_equal(render(pipe), render(with_adapters(folder)))
