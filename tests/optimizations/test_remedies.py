"""Refusals of pipelines that people have: the remedy is taken out of the message, executed, and then it works.

Remedies that a message states as code are run as that code; those in words are followed by the function beside them.
The families are the rows of docs/compatibility.md. Refusals of files are followed in tests/pipeline.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler, FluxPipeline
from peft import LoraConfig

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.acceleration import accelerate, current
from kontext_fast.optimizations.patching import group_hook
from kontext_fast.optimizations.techniques.step_reuse import StepReuse
from tests.pipelines import SIDE, picture, render, small_pipeline

Names = dict[str, Any]
"""What a user has in scope: `pipe` among them."""


def on_a_linear(pipe: Any) -> Names:
    module = pipe.transformer.single_transformer_blocks[0].attn.to_q
    return {"pipe": pipe, "module": module}


def hook(pipe: Any) -> Names:
    names = on_a_linear(pipe)
    return {**names, "handle": names["module"].register_forward_hook(lambda *_: None)}


def own_forward(pipe: Any) -> Names:
    names = on_a_linear(pipe)
    names["module"].forward = lambda numbers: numbers
    return names


def parametrization(pipe: Any) -> Names:
    names = on_a_linear(pipe)
    torch.nn.utils.parametrize.register_parametrization(names["module"], "weight", torch.nn.Identity())
    return {**names, "torch": torch}


def cache_of_diffusers(pipe: Any) -> Names:
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    return {"pipe": pipe}


def fused_projections(pipe: Any) -> Names:
    pipe.transformer.fuse_qkv_projections()
    return {"pipe": pipe}


def other_attention(pipe: Any) -> Names:
    from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

    pipe.transformer.set_attn_processor(type("Other", (FluxAttnProcessor,), {})())
    return {"pipe": pipe, "FluxAttnProcessor": FluxAttnProcessor}


def compiled(pipe: Any) -> Names:
    pipe.transformer.compile()
    return {"pipe": pipe}


def float16(pipe: Any) -> Names:
    pipe.transformer.to(torch.float16)
    return {"pipe": pipe}


def mixed_precisions(pipe: Any) -> Names:
    pipe.transformer.proj_out.to(torch.bfloat16)
    return {"pipe": pipe}


def quantized_layer(pipe: Any) -> Names:
    block = pipe.transformer.single_transformer_blocks[0]
    block.proj_mlp = type("Linear4bit", (torch.nn.Linear,), {})(*reversed(block.proj_mlp.weight.shape))
    return {"pipe": pipe}


def layerwise_casting(pipe: Any) -> Names:
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    return {"pipe": pipe}


def grouped_by_layer(pipe: Any) -> None:
    pipe.transformer.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")


def grouped_by_block(pipe: Any) -> None:
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    )


def grouped_with_a_stream(pipe: Any) -> None:
    grouped_by_block(pipe)
    for module in pipe.transformer.modules():
        if (of_group := group_hook(module)) is not None:
            of_group.group.stream = "that of a GPU"


def wrapped_transformer(pipe: Any) -> Names:
    pipe.transformer = torch.nn.DataParallel(pipe.transformer)
    return {"pipe": pipe}


@pytest.fixture
def pipe() -> Any:
    return small_pipeline()


CODE = {
    hook: r"handle\.remove\(\)",
    own_forward: r"del module\.forward",
    parametrization: r'torch\.nn\.utils\.parametrize\.remove_parametrizations\(module, "weight"\)',
    cache_of_diffusers: r"pipe\.transformer\.disable_cache\(\)",
    fused_projections: r"pipe\.transformer\.unfuse_qkv_projections\(\)",
    other_attention: r"pipe\.transformer\.set_attn_processor\(FluxAttnProcessor\(\)\)",
}
"""The remedy as the message must state it, in code."""


ON_BOTH = [(plan, disturb) for plan in ("balanced", "fuse_qkv") for disturb in CODE]
ON_BOTH = [case for case in ON_BOTH if case not in {("fuse_qkv", cache_of_diffusers), ("fuse_qkv", other_attention)}]
"""Techniques with what they refuse: fuse_qkv runs attention and blocks as they are."""


@pytest.mark.parametrize(("plan", "disturb"), ON_BOTH, ids=lambda case: getattr(case, "__name__", case))
def test_code_of_a_remedy_makes_it_work(pipe: Any, plan: str, disturb: Callable[[Any], Names]) -> None:
    names = disturb(pipe)
    with pytest.raises(InvalidInput) as refusal:
        accelerate(pipe, plan, quiet=True)
    statements = re.findall(CODE[disturb], str(refusal.value))
    assert statements, str(refusal.value)
    for statement in statements:
        exec(statement, names)
    with accelerate(pipe, plan, quiet=True):
        assert np.isfinite(render(pipe, steps=1)).all()


LOADED_OTHERWISE = {
    compiled: r"load it again without torch\.compile|load the pipeline again without compiling it",
    float16: r"load the pipeline with dtype=torch\.bfloat16",
    mixed_precisions: r"load the pipeline with one dtype",
    quantized_layer: r"load the checkpoint without quantization",
    layerwise_casting: r"load the pipeline with one dtype|load the pipeline again without enable_layerwise_casting",
    wrapped_transformer: r"load the pipeline again without wrapping it",
}
"""Remedies that load the pipeline in another way."""


@pytest.mark.parametrize("disturb", LOADED_OTHERWISE, ids=lambda disturb: disturb.__name__)
def test_pipeline_loaded_as_the_remedy_says_works(pipe: Any, disturb: Callable[[Any], Names]) -> None:
    disturb(pipe)
    with pytest.raises(InvalidInput, match=LOADED_OTHERWISE[disturb]):
        accelerate(pipe, "balanced", quiet=True)
    again = small_pipeline()
    if disturb is float16:
        again.to(torch.bfloat16)
    with accelerate(again, "balanced", quiet=True):
        assert np.isfinite(render(again, steps=1)).all()


def call(pipe: Any, **changed: Any) -> Any:
    size = {"height": SIDE, "width": SIDE, "max_area": SIDE * SIDE, "_auto_resize": False, "num_inference_steps": 1}
    given = {"image": picture(), "prompt": "make it red", "max_sequence_length": 48, "output_type": "np", **size}
    return pipe(**{**given, **changed}).images


def test_second_acceleration_works_once_reverted(pipe: Any) -> None:
    acceleration = accelerate(pipe, "balanced", quiet=True)
    with pytest.raises(InvalidInput, match=r"call revert\(\) on that one first"):
        accelerate(pipe, "fast", quiet=True)
    acceleration.revert()
    accelerate(pipe, "fast", quiet=True)
    assert np.isfinite(render(pipe, steps=1)).all()


@pytest.mark.parametrize("follow", ["choose the same", r"call revert\(\) on that one first"])
def test_other_preset_on_a_transformer_follows_the_remedy(pipe: Any, follow: str) -> None:
    other = type(pipe)(**pipe.components)
    acceleration = accelerate(pipe, "balanced", quiet=True)
    with pytest.raises(InvalidInput, match=follow):
        accelerate(other, "fast", quiet=True)
    if follow == "choose the same":
        accelerate(other, "balanced", quiet=True)
    else:
        acceleration.revert()
        accelerate(other, "fast", quiet=True)
    assert np.isfinite(call(other)).all()


def test_shared_scheduler_is_replaced_as_the_remedy_says(pipe: Any) -> None:
    twin = copy.copy(pipe)
    accelerate(pipe, "balanced", quiet=True)
    accelerate(twin, "balanced", quiet=True)

    def call_inside(_pipe: Any, _step: int, _time: Any, tensors: Names) -> Names:
        with pytest.raises(InvalidInput, match="in another call") as refusal:
            call(twin)
        (statement,) = re.findall(r"pipe\.scheduler = type.*config\)", str(refusal.value))
        exec(statement, {"pipe": twin})
        return tensors

    call(pipe, callback_on_step_end=call_inside)
    assert np.isfinite(call(twin)).all()


def test_lora_is_loaded_after_revert_and_merged_again(pipe: Any) -> None:
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    acceleration = accelerate(pipe, "balanced", quiet=True)
    with pytest.raises(InvalidInput, match=r"call revert\(\), then disable_lora, then accelerate again"):
        pipe.disable_lora()
    merged = render(pipe, steps=1)
    acceleration.revert()
    pipe.disable_lora()
    accelerate(pipe, "balanced", quiet=True)
    assert not np.array_equal(render(pipe, steps=1), merged)


def test_scale_of_merged_adapters_goes_to_set_adapters(pipe: Any) -> None:
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    acceleration = accelerate(pipe, "balanced", quiet=True)
    whole = call(pipe, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InvalidInput, match=r"acceleration\.set_adapters\(names, strengths\)"):
        call(pipe, joint_attention_kwargs={"scale": 0.25})
    acceleration.set_adapters("default", 0.25)
    assert not np.array_equal(call(pipe, generator=torch.Generator().manual_seed(0)), whole)


def test_moved_transformer_works_after_the_stated_order(pipe: Any) -> None:
    acceleration = accelerate(pipe, "balanced", quiet=True)
    pipe.transformer.to(torch.bfloat16)
    with pytest.raises(InvalidInput, match="revert the acceleration, change the pipeline, then accelerate again"):
        render(pipe, steps=1)
    acceleration.revert()
    pipe.to(torch.bfloat16)
    accelerate(pipe, "balanced", quiet=True)
    assert np.isfinite(render(pipe, steps=1)).all()
    assert current(pipe) is not None


def test_replaced_model_works_after_the_stated_order(pipe: Any) -> None:
    acceleration = accelerate(pipe, "balanced", quiet=True)
    own, pipe.vae = pipe.vae, copy.deepcopy(pipe.vae)
    with pytest.raises(InvalidInput, match="revert first, replace it, then accelerate again"):
        render(pipe, steps=1)
    pipe.vae, other = own, pipe.vae
    acceleration.revert()
    pipe.vae = other
    accelerate(pipe, "balanced", quiet=True)
    assert np.isfinite(render(pipe, steps=1)).all()


def test_reference_cache_left_out_serves_text_alone(pipe: Any) -> None:
    text_alone = FluxPipeline(**pipe.components)
    with pytest.raises(InvalidInput, match="leave it out for text-to-image"):
        accelerate(text_alone, "reference_latents_cache", quiet=True)
    accelerate(text_alone, "prompt_cache", quiet=True)


@pytest.mark.parametrize(
    ("preset", "grouped"),
    [("fuse_qkv", grouped_by_layer), ("classic", grouped_by_block), ("fuse_qkv", grouped_with_a_stream)],
)
def test_group_offloading_runs_with_the_preset_named(pipe: Any, preset: str, grouped: Callable[[Any], None]) -> None:
    grouped(pipe)
    with pytest.raises(InvalidInput) as refusal:
        accelerate(pipe, preset, quiet=True)
    for module in pipe.transformer.modules():
        if (of_group := group_hook(module)) is not None:
            of_group.group.stream = None  # of which there is none on a CPU
    remedy = re.findall(r"accelerate\(pipe, 'faithful'\)", str(refusal.value))
    assert remedy, str(refusal.value)
    with eval(remedy[0], {"pipe": pipe, "accelerate": accelerate}):
        assert np.isfinite(render(pipe, steps=1)).all()


def brightened(_pipe: Any, _step: int, _time: Any, tensors: Names) -> Names:
    return {"latents": tensors["latents"] + 0.1}


@pytest.mark.parametrize(
    ("preset", "argument", "remedy"),
    [
        ("solver", {"sigmas": [1.0, 0.5]}, "leave out sigmas"),
        ("solver", {"callback_on_step_end": brightened}, "leave that out"),
        ("engine", {"joint_attention_kwargs": {"ip_adapter_image_embeds": []}}, "leave one of the two out"),
        ("first_block_cache", {"joint_attention_kwargs": {"ip_adapter_image_embeds": []}}, "leave one of the two out"),
    ],
)
def test_argument_is_left_out_as_the_remedy_says(pipe: Any, preset: str, argument: Names, remedy: str) -> None:
    accelerate(pipe, preset, quiet=True)
    with pytest.raises(InvalidInput, match=remedy):
        call(pipe, num_inference_steps=2, **argument)
    assert np.isfinite(call(pipe, num_inference_steps=2)).all()


@pytest.mark.parametrize(
    ("preset", "remedy"),
    [("solver", "put one into the pipeline first"), ("turbo", "use a plain FlowMatchEulerDiscreteScheduler")],
)
def test_scheduler_that_the_remedy_names_works(pipe: Any, preset: str, remedy: str) -> None:
    plain = pipe.scheduler
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(plain.config, stochastic_sampling=True)
    with pytest.raises(InvalidInput, match=remedy), accelerate(pipe, preset, quiet=True):
        call(pipe)
    pipe.scheduler = plain
    with accelerate(pipe, preset, quiet=True):
        assert np.isfinite(call(pipe)).all()


def test_replaced_step_of_a_scheduler_is_taken_off(pipe: Any) -> None:
    pipe.scheduler.step = pipe.scheduler.step
    accelerate(pipe, "solver", quiet=True)
    with pytest.raises(InvalidInput) as refusal:
        call(pipe)
    exec(re.findall(r"\((del pipe\.scheduler\.step)\)", str(refusal.value))[0], {"pipe": pipe})
    assert np.isfinite(call(pipe)).all()


def test_technique_without_its_engine_runs_by_the_preset_named(pipe: Any) -> None:
    with pytest.raises(InvalidInput) as refusal:
        accelerate(pipe, [StepReuse(computed=1)], quiet=True)
    accelerate(pipe, re.findall(r"use the preset (\w+)", str(refusal.value))[0], quiet=True)
    assert np.isfinite(call(pipe)).all()


def test_strength_for_each_adapter_is_taken(pipe: Any) -> None:
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    acceleration = accelerate(pipe, "balanced", quiet=True)
    with pytest.raises(InvalidInput, match="give one for each"):
        acceleration.set_adapters(["default"], [1.0, 0.5])
    acceleration.set_adapters(["default"], [0.5])
    assert acceleration.adapters == ("default",)
