"""Pipelines with the hooks of diffusers' offloading, as accelerate installs them, under presets with the engine."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.hooks import ModelHook

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.patching import group_hook
from kontext_fast.optimizations.techniques.offload import enabling, set_hooks_aside
from tests.pipelines import render, small_pipeline

OFFLOADINGS = ("enable_model_cpu_offload", "enable_sequential_cpu_offload")


def offloaded(enabling: str) -> Any:
    """On the CPU, which is a device like others to hooks."""
    pipe = small_pipeline()
    getattr(pipe, enabling)(device="cpu")
    return pipe


def hooked(pipe: Any) -> dict[str, set[str]]:
    """Names of the modules with hooks of accelerate, by model."""
    models = ("transformer", "vae", "text_encoder", "text_encoder_2")
    return {
        model: {name for name, module in getattr(pipe, model).named_modules() if "_hf_hook" in vars(module)}
        for model in models
    }


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """Images of a pipeline without offloading, by preset."""
    images = {"stock": render(small_pipeline(), steps=2)}
    for preset in ("faithful", "balanced", "fast"):
        pipe = small_pipeline()
        with accelerate(pipe, preset, quiet=True):
            images[preset] = render(pipe, steps=2)
    return images


def require_stock(pipe: Any, plain: dict[str, Any]) -> None:
    """That `pipe` is as it was: twice, as offloading is enabled anew at the end of each call."""
    if pipe._all_hooks:
        for _ in range(2):
            np.testing.assert_array_equal(render(pipe, steps=2), plain["stock"])
    else:
        # accelerate cannot run a tied weight sequentially where the device is the host itself, accelerated or not.
        pipe.remove_all_hooks()
        np.testing.assert_array_equal(render(pipe, steps=2), plain["stock"])


@pytest.mark.parametrize("enabling", OFFLOADINGS)
@pytest.mark.parametrize("preset", ["faithful", "balanced", "fast"])
def test_offloaded_pipeline_gives_the_images_of_the_preset(plain: dict[str, Any], enabling: str, preset: str) -> None:
    pipe = offloaded(enabling)
    before = hooked(pipe)
    assert before["transformer"]
    with accelerate(pipe, preset, quiet=True) as acceleration:
        for _ in range(2):
            np.testing.assert_array_equal(render(pipe, steps=2), plain[preset])
        assert not any(hooked(pipe).values())
        assert acceleration.facts["offload"]["resident_peak_bytes"] > 0
        assert enabling in acceleration.describe()
        engine = acceleration.plan.applied[0].parameters
        assert engine.get("modulations") == ("host" if enabling == "enable_sequential_cpu_offload" else None)
    assert hooked(pipe) == before
    assert pipe._offload_device == torch.device("cpu", 0)
    require_stock(pipe, plain)


@pytest.mark.parametrize("enabling", OFFLOADINGS)
def test_hooks_are_back_after_a_preset_that_fails(plain: dict[str, Any], enabling: str) -> None:
    pipe = offloaded(enabling)
    before = hooked(pipe)
    pipe.transformer.fused_projections = True
    with pytest.raises(InvalidInput, match="unfuse_qkv_projections"):
        accelerate(pipe, "balanced", quiet=True)
    assert hooked(pipe) == before
    require_stock(pipe, plain)


def test_copies_of_an_offloaded_pipeline_render_the_same(plain: dict[str, Any]) -> None:
    pipe = offloaded("enable_model_cpu_offload")
    with accelerate(pipe, "balanced", quiet=True):
        duplicate = copy.copy(pipe)
        duplicate.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        np.testing.assert_array_equal(render(duplicate, steps=2), plain["balanced"])
        np.testing.assert_array_equal(render(copy.deepcopy(pipe), steps=2), plain["stock"])


@pytest.mark.parametrize("enabling", [*OFFLOADINGS, "enable_group_offload"])
def test_offloading_after_accelerate_follows_the_remedy(plain: dict[str, Any], enabling: str) -> None:
    options: Any = {"device": "cpu"}
    if enabling == "enable_group_offload":
        options = {"onload_device": torch.device("cpu"), "offload_type": "leaf_level"}
    pipe = small_pipeline()
    acceleration = accelerate(pipe, "balanced", quiet=True)
    with pytest.raises(InvalidInput, match=rf"call revert\(\), then {enabling}, then accelerate again"):
        getattr(pipe, enabling)(**options)
    np.testing.assert_array_equal(render(pipe, steps=2), plain["balanced"])
    acceleration.revert()
    getattr(pipe, enabling)(**options)
    with accelerate(pipe, "balanced", quiet=True):
        np.testing.assert_array_equal(render(pipe, steps=2), plain["balanced"])


def test_list_of_optimizations_names_what_takes_hooks_off() -> None:
    from kontext_fast.optimizations.acceleration import apply_plan
    from kontext_fast.optimizations.presets import resolve
    from kontext_fast.pipeline.device import Machine

    pipe = offloaded("enable_model_cpu_offload")
    plan = resolve("balanced", Machine.detect("cpu"))
    with pytest.raises(InvalidInput, match=r"pipe\.remove_all_hooks\(\)"):
        apply_plan(plan, pipe)
    pipe.remove_all_hooks()
    apply_plan(plan, pipe)
    assert np.isfinite(render(pipe, steps=1)).all()


GROUPINGS: dict[str, dict[str, Any]] = {
    "blocks": {"offload_type": "block_level", "num_blocks_per_group": 1},
    "leaves": {"offload_type": "leaf_level"},
    "disk": {"offload_type": "block_level", "num_blocks_per_group": 2, "offload_to_disk_path": True},
}


def grouped(model: Any, kind: str, folder: Path) -> None:
    """Put group offloading on `model` or a pipeline; streams, with which groups are read ahead, need a GPU."""
    options = GROUPINGS[kind]
    if "offload_to_disk_path" in options:
        options = {**options, "offload_to_disk_path": str(folder)}
    model.enable_group_offload(onload_device=torch.device("cpu"), **options)


def group_hooks(pipe: Any) -> dict[str, Any]:
    """Hooks of group offloading, by model and module."""
    models = ("transformer", "vae", "text_encoder", "text_encoder_2")
    return {
        f"{model} {name}": hook
        for model in models
        for name, module in getattr(pipe, model).named_modules()
        if (hook := group_hook(module)) is not None
    }


@pytest.mark.parametrize("kind", GROUPINGS)
def test_groups_are_set_aside_and_put_back(plain: dict[str, Any], kind: str, tmp_path: Path) -> None:
    pipe = small_pipeline()
    grouped(pipe, kind, tmp_path)
    before = group_hooks(pipe)
    assert len({name.split()[0] for name in before}) == 4
    with accelerate(pipe, "balanced", quiet=True) as acceleration:
        np.testing.assert_array_equal(render(pipe, steps=2), plain["balanced"])
        assert not group_hooks(pipe)
        assert acceleration.facts["offload"]["resident_peak_bytes"] > 0
        assert acceleration.plan.applied[0].parameters["modulations"] == "host"
        assert "enable_group_offload" in acceleration.describe()
    assert group_hooks(pipe) == before
    for _ in range(2):
        np.testing.assert_array_equal(render(pipe, steps=2), plain["stock"])


def test_one_model_with_groups_is_offloaded_as_all(plain: dict[str, Any], tmp_path: Path) -> None:
    pipe = small_pipeline()
    grouped(pipe.transformer, "blocks", tmp_path)
    with accelerate(pipe, "fast", quiet=True) as acceleration:
        np.testing.assert_array_equal(render(pipe, steps=2), plain["fast"])
        assert "offload" in acceleration.facts
    np.testing.assert_array_equal(render(pipe, steps=2), plain["stock"])


def test_groups_are_back_after_a_preset_that_fails(plain: dict[str, Any], tmp_path: Path) -> None:
    pipe = small_pipeline()
    grouped(pipe, "disk", tmp_path)
    before = group_hooks(pipe)
    pipe.transformer.fused_projections = True
    with pytest.raises(InvalidInput, match="unfuse_qkv_projections"):
        accelerate(pipe, "balanced", quiet=True)
    assert group_hooks(pipe) == before
    np.testing.assert_array_equal(render(pipe, steps=2), plain["stock"])


@pytest.mark.parametrize("kind", [*OFFLOADINGS, *GROUPINGS])
def test_hooks_are_set_aside_and_come_back(kind: str, tmp_path: Path) -> None:
    if kind in GROUPINGS:
        pipe = small_pipeline()
        grouped(pipe, kind, tmp_path)
    else:
        pipe = offloaded(kind)
    before, by_accelerate = group_hooks(pipe), hooked(pipe)
    assert enabling(pipe) == ("enable_group_offload" if kind in GROUPINGS else kind)
    with ExitStack() as undo:
        assert set_hooks_aside(pipe, undo) == torch.device("cpu", None if kind in GROUPINGS else 0)
        assert not group_hooks(pipe)
        assert not any(hooked(pipe).values())
        for model in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
            assert all(tensor.is_cpu for tensor in (*model.parameters(), *model.buffers()))
        for name, tensor in small_pipeline().transformer.state_dict().items():
            assert torch.equal(pipe.transformer.state_dict()[name], tensor)
    assert group_hooks(pipe) == before
    assert hooked(pipe) == by_accelerate


def test_hooks_that_learn_the_order_of_groups_come_back_after_those_of_groups(tmp_path: Path) -> None:
    """diffusers adds them where groups are read ahead, by streams; here plain hooks have their names."""
    pipe = small_pipeline()
    grouped(pipe.transformer, "blocks", tmp_path)
    model, block = (part._diffusers_hook for part in (pipe.transformer, pipe.transformer.transformer_blocks[0]))
    tracing = ModelHook()
    model.register_hook(tracing, "lazy_prefetch_group_offloading")
    block.register_hook(ModelHook(), "layer_execution_tracker")
    with ExitStack() as undo:
        set_hooks_aside(pipe, undo)
        assert not model.hooks
        assert not block.hooks
    assert model._hook_order == ["group_offloading", "lazy_prefetch_group_offloading"]
    assert model.get_hook("lazy_prefetch_group_offloading") is tracing
    assert block._hook_order == ["group_offloading"]  # a call that learns the order adds its own
