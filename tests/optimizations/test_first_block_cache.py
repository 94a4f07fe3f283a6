"""The cache decides per sample and per pass, and is the untouched forward where it skips nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kontext_fast.errors import InvalidInput, KontextError
from kontext_fast.optimizations.acceleration import Acceleration, accelerate
from kontext_fast.optimizations.call_tracking import tracker_of
from kontext_fast.optimizations.techniques import first_block_cache
from kontext_fast.optimizations.techniques.first_block_cache import (
    FirstBlockCache,
    _change,
)
from tests.pipelines import render, small_pipeline

ALWAYS_BELOW = 1e9
STEPS = 6
RED, REMOVE, MOVE = "make the background red", "remove the circle", "move the star to the left"
FIRST: dict[str, Any] = {"prompts": (RED,), "seeds": (1,)}
SECOND: dict[str, Any] = {"prompts": (REMOVE,), "seeds": (2,)}
THIRD: dict[str, Any] = {"prompts": (MOVE,), "seeds": (3,)}
BOTH: dict[str, Any] = {"prompts": (RED, REMOVE), "seeds": (1, 2)}
ALL: dict[str, Any] = {"prompts": (RED, REMOVE, MOVE), "seeds": (1, 2, 3)}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return small_pipeline(double=2, single=2)


def cached(pipe: Any, images: dict[str, Any], **parameters: Any) -> tuple[np.ndarray[Any, Any], Acceleration]:
    with accelerate(pipe, [FirstBlockCache(**parameters)], quiet=True) as acceleration:
        return render(pipe, steps=STEPS, **images), acceleration


def counts(acceleration: Acceleration) -> list[list[int]]:
    result: list[list[int]] = acceleration.facts["first_block_cache"]["computed_steps"]
    return result


@pytest.mark.parametrize("images", [FIRST, BOTH, {**BOTH, "negative": "blurry"}], ids=["one", "batch", "true-cfg"])
def test_threshold_zero_is_bit_identical(pipe: Any, images: dict[str, Any]) -> None:
    result, acceleration = cached(pipe, images, threshold=0)
    np.testing.assert_array_equal(result, render(pipe, steps=STEPS, **images))
    assert acceleration.last_step_kinds() == ["full"] * STEPS


@pytest.mark.parametrize("warmup", [1, 2, 4])
def test_huge_threshold_computes_the_warmup_only(pipe: Any, warmup: int) -> None:
    result, acceleration = cached(pipe, FIRST, threshold=ALWAYS_BELOW, warmup_steps=warmup)
    assert acceleration.last_step_kinds() == ["full"] * warmup + ["skipped"] * (STEPS - warmup)
    assert counts(acceleration) == [[warmup]]
    assert np.isfinite(result).all()
    assert not np.array_equal(result, render(pipe, steps=STEPS, **FIRST))


def test_skipped_step_runs_the_first_block_only(pipe: Any) -> None:
    calls: list[str] = []
    transformer = pipe.transformer
    blocks = {"first": transformer.transformer_blocks[0], "second": transformer.transformer_blocks[1]}
    blocks |= {"single": transformer.single_transformer_blocks[1]}
    handles = [
        block.register_forward_pre_hook(lambda *_, name=name: calls.append(name)) for name, block in blocks.items()
    ]
    cached(pipe, FIRST, threshold=ALWAYS_BELOW)
    for handle in handles:
        handle.remove()
    assert {name: calls.count(name) for name in blocks} == {"first": STEPS, "second": 2, "single": 2}


def test_consecutive_skips_are_limited(pipe: Any) -> None:
    _, acceleration = cached(pipe, FIRST, threshold=ALWAYS_BELOW, warmup_steps=1, max_consecutive_skips=2)
    assert acceleration.last_step_kinds() == ["full", "skipped", "skipped", "full", "skipped", "skipped"]


def first_drift(pipe: Any, images: dict[str, Any], patch: pytest.MonkeyPatch) -> float:
    """How much the first block's residual changes from step 1 to step 2."""
    changes: list[torch.Tensor] = []

    def note(*arguments: Any) -> torch.Tensor:
        changes.append(_change(*arguments))
        return changes[-1]

    with patch.context() as patched:
        patched.setattr(first_block_cache, "_change", note)
        cached(pipe, images, threshold=0)
    return float((changes[2] - changes[1]).abs().mean() / changes[1].abs().mean())


def test_sample_of_a_batch_equals_the_sample_alone(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drifts = sorted(first_drift(pipe, images, monkeypatch) for images in (FIRST, SECOND, THIRD))
    threshold = (drifts[0] + drifts[1]) / 2
    alone = [cached(pipe, images, threshold=threshold) for images in (FIRST, SECOND, THIRD)]
    kinds = [acceleration.last_step_kinds() for _, acceleration in alone]
    # At step 2 two samples compute, as a sub-batch, and one does not.
    assert sorted(one[2] for one in kinds) == ["full", "full", "skipped"]
    together, acceleration = cached(pipe, ALL, threshold=threshold)
    assert counts(acceleration) == [[counts(one)[0][0] for _, one in alone]]
    np.testing.assert_allclose(together, np.concatenate([images for images, _ in alone]), rtol=0, atol=1e-3)
    expected = ["skipped" if set(each) == {"skipped"} else "full" for each in zip(*kinds, strict=True)]
    assert acceleration.last_step_kinds() == expected
    # The samples differ by more than the tolerance, so swapped rows would have been seen.
    assert np.abs(together[0] - together[1]).max() > 1e-2


def test_true_cfg_keeps_separate_states(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same text on both sides, each pass must decide as an edit without true CFG does.

    If the passes shared a state, the second would always find itself equal to the first and never be computed.
    """
    threshold = 1.01 * first_drift(pipe, FIRST, monkeypatch)
    plain, alone = cached(pipe, FIRST, threshold=threshold)
    guided, both = cached(pipe, {**FIRST, "negative": RED}, threshold=threshold)
    assert counts(both) == [*counts(alone), *counts(alone)]
    assert counts(alone)[0][0] < STEPS
    assert both.last_step_kinds() == alone.last_step_kinds()
    np.testing.assert_allclose(guided, plain, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("total", "computed"), [(1, {0}), (2, {0, 1}), (3, {0, 1, 2}), (4, {0, 1, 3}), (5, {0, 1, 3, 4}), (6, {0, 1, 3, 5})]
)
def test_every_second_computes_the_first_two_and_the_last(pipe: Any, total: int, computed: set[int]) -> None:
    schedule = FirstBlockCache(schedule="every_second")
    assert schedule.computed_steps(total) == computed
    with accelerate(pipe, [schedule], quiet=True) as acceleration:
        render(pipe, steps=total, **FIRST)
    expected = ["full" if step in computed else "skipped" for step in range(total)]
    assert acceleration.last_step_kinds() == expected


def test_schedule_is_followed_in_both_passes(pipe: Any) -> None:
    _, acceleration = cached(pipe, {**BOTH, "negative": "blurry"}, schedule=(0, 4, 99))
    assert acceleration.last_step_kinds() == ["full", "skipped", "skipped", "skipped", "full", "skipped"]
    assert counts(acceleration) == [[2, 2], [2, 2]]


def test_schedule_of_all_steps_is_bit_identical(pipe: Any) -> None:
    result, _ = cached(pipe, BOTH, schedule=tuple(range(STEPS)))
    np.testing.assert_array_equal(result, render(pipe, steps=STEPS, **BOTH))


def inputs_of(pipe: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    config = pipe.transformer.config
    return {
        "hidden_states": torch.randn(1, 4, config.in_channels, generator=generator),
        "encoder_hidden_states": torch.randn(1, 3, config.joint_attention_dim, generator=generator),
        "pooled_projections": torch.randn(1, config.pooled_projection_dim, generator=generator),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([2.5]),
        "img_ids": torch.zeros(4, 3),
        "txt_ids": torch.zeros(3, 3),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_computed_call_is_that_of_the_transformer(dtype: torch.dtype) -> None:
    pipe = small_pipeline(double=2, single=2)
    pipe.transformer.to(dtype)
    inputs = inputs_of(pipe)
    for name in ("hidden_states", "encoder_hidden_states", "pooled_projections"):
        inputs[name] = inputs[name].to(dtype)
    # Numbers that are rounded in half precision before they are multiplied.
    inputs |= {"timestep": torch.tensor([0.5371]), "guidance": torch.tensor([2.5372])}
    with torch.no_grad():
        expected = pipe.transformer(**inputs)
        with accelerate(pipe, [FirstBlockCache(threshold=0)], quiet=True) as acceleration:
            assert counts(acceleration) == []
            calls = tracker_of(pipe)
            assert calls is not None
            with calls.open(pipe):
                result, (alone,) = pipe.transformer(**inputs), pipe.transformer(**inputs, return_dict=False)
                assert calls.current is not None
                calls.current.end_step()
                for kind in ("controlnet_block_samples", "controlnet_single_block_samples"):
                    with pytest.raises(InvalidInput, match="does not support ControlNet"):
                        pipe.transformer(**inputs, **{kind: [torch.zeros(1)]})
            assert counts(acceleration) == [[1], [1]]
    assert type(result) is type(expected)
    assert torch.equal(result.sample, expected.sample)
    assert torch.equal(alone, expected.sample)


@pytest.mark.parametrize("name", ["pooled_projections", "guidance", "img_ids", "txt_ids"])
def test_call_of_another_pipeline_in_between_is_refused(pipe: Any, name: str) -> None:
    inputs = inputs_of(pipe)
    with accelerate(pipe, [FirstBlockCache(threshold=0)], quiet=True):
        calls = tracker_of(pipe)
        assert calls is not None
        with calls.open(pipe), torch.no_grad():
            for _ in range(2):
                pipe.transformer(**inputs)
                assert calls.current is not None
                calls.current.end_step()
            with pytest.raises(InvalidInput, match="other prompts or positions than at the step before"):
                pipe.transformer(**{**inputs, name: inputs[name].clone()})


def test_transformer_is_the_original_outside_of_requests(pipe: Any) -> None:
    arguments = inputs_of(pipe)
    with torch.no_grad():
        expected = pipe.transformer(**arguments).sample
        with accelerate(pipe, [FirstBlockCache(threshold=ALWAYS_BELOW)], quiet=True):
            results = [pipe.transformer(**arguments).sample for _ in range(4)]
    assert all(torch.equal(result, expected) for result in results)


def test_unsupported_arguments_are_refused_in_their_request(pipe: Any) -> None:
    def ask(**more: Any) -> None:
        pipe(prompt=RED, height=32, width=32, max_area=32 * 32, num_inference_steps=1, max_sequence_length=48, **more)

    with accelerate(pipe, [FirstBlockCache()], quiet=True):
        with pytest.raises(InvalidInput, match="IP-Adapter"):
            ask(joint_attention_kwargs={"ip_hidden_states": []})
        ask(joint_attention_kwargs={"scale": 1.0})
        block_samples = [torch.zeros(1)]
        inner = pipe.transformer.forward
        pipe.transformer.forward = lambda **given: inner(**given, controlnet_block_samples=block_samples)
        try:
            with pytest.raises(InvalidInput, match="ControlNet"):
                ask()
        finally:
            pipe.transformer.forward = inner


def test_lora_scale_is_used() -> None:
    from peft import LoraConfig

    pipe = small_pipeline(double=2, single=2)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_out.0"], init_lora_weights=False))

    def images(scale: float) -> np.ndarray[Any, Any]:
        common: dict[str, Any] = {"height": 32, "width": 32, "max_area": 32 * 32, "max_sequence_length": 48}
        generator = torch.Generator().manual_seed(0)
        result: np.ndarray[Any, Any] = pipe(
            prompt=RED, generator=generator, num_inference_steps=3, output_type="np",
            joint_attention_kwargs={"scale": scale}, **common,
        ).images  # fmt: skip
        return result

    half, full = images(0.5), images(1.0)
    assert not np.array_equal(half, full)
    with accelerate(pipe, [FirstBlockCache(threshold=0)], quiet=True):
        np.testing.assert_array_equal(images(0.5), half)
        np.testing.assert_array_equal(images(1.0), full)


@pytest.mark.parametrize("hooked_first", [True, False])
def test_cache_works_inside_offloading_hooks(hooked_first: bool) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    seen: list[str] = []

    class Note(ModelHook):  # type: ignore[misc]
        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append("moved in")
            return args, kwargs

    pipe = small_pipeline(double=2, single=2)
    expected = render(pipe, steps=3)
    if hooked_first:
        add_hook_to_module(pipe.transformer, Note())
    acceleration = accelerate(pipe, [FirstBlockCache(threshold=ALWAYS_BELOW)], quiet=True)
    if not hooked_first:
        add_hook_to_module(pipe.transformer, Note())
    render(pipe, steps=3)
    assert acceleration.last_step_kinds() == ["full", "full", "skipped"]
    assert len(seen) == 3
    acceleration.revert()
    np.testing.assert_array_equal(render(pipe, steps=3), expected)
    assert len(seen) == 6
    remove_hook_from_module(pipe.transformer)
    np.testing.assert_array_equal(render(pipe, steps=3), expected)


def test_other_cache_is_refused() -> None:
    from diffusers import FirstBlockCacheConfig

    pipe = small_pipeline(double=2, single=2)
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    pipe.transformer.forward = lambda *args, **kwargs: None
    with pytest.raises(InvalidInput) as caught:
        accelerate(pipe, [FirstBlockCache()], quiet=True)
    assert str(caught.value) == (
        "Something already replaced the transformer's forward (another cache or hook); remove it, e.g. with "
        "pipe.transformer.disable_cache(), then accelerate again."
    )


def test_forward_that_was_replaced_meanwhile_is_not_overwritten() -> None:
    pipe = small_pipeline(double=2)
    acceleration = accelerate(pipe, [FirstBlockCache()], quiet=True)
    pipe.transformer.forward = somebodys = lambda *args, **kwargs: None
    with pytest.raises(KontextError) as caught:
        acceleration.revert()
    assert str(caught.value) == "The transformer's forward was replaced after accelerate; load the checkpoint again."
    assert pipe.transformer.forward is somebodys


def test_transformer_without_guidance_is_followed() -> None:
    from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings

    pipe = small_pipeline(double=2)
    own, config = pipe.transformer.time_text_embed, pipe.transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    plain = CombinedTimestepTextProjEmbeddings(width, config.pooled_projection_dim)
    plain.timestep_embedder, plain.text_embedder = own.timestep_embedder, own.text_embedder
    pipe.transformer.time_text_embed = plain
    pipe.transformer.register_to_config(guidance_embeds=False)
    stock = render(pipe, steps=2)
    with accelerate(pipe, [FirstBlockCache(threshold=0)], quiet=True):
        np.testing.assert_array_equal(render(pipe, steps=2), stock)


def test_group_offloading_is_refused_by_its_name() -> None:
    pipe = small_pipeline()
    cpu = torch.device("cpu")
    pipe.transformer.enable_group_offload(cpu, cpu, offload_type="block_level", num_blocks_per_group=1)
    with pytest.raises(
        InvalidInput, match=r"^The transformer has group offloading, which first_block_cache would ignore; use"
    ):
        accelerate(pipe, [FirstBlockCache()], quiet=True)
