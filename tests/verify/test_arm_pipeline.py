"""What an arm applies to the pipeline is there while it runs, stays for an equal one, and is taken back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from kontext_fast.errors import OutOfMemory
from kontext_fast.optimizations.acceleration import current
from kontext_fast.pipeline.load import LoadedCheckpoint, loaded_checkpoint
from kontext_fast.records.schema import Arm
from kontext_fast.verify.arm_pipeline import ArmPipeline, captured_latents, use_other_precision
from kontext_fast.verify.arms import ArmSpec
from tests.pipelines import render, small_pipeline

BASELINE = ArmSpec(arm=Arm(name="baseline", role="baseline"), items=(), separate=0, steps=1, images_per_call=1)
CACHED = replace(BASELINE, preset="prompt_cache")


class Source:
    """Gives a pipeline, and notes that it was taken back."""

    def __init__(self) -> None:
        self.pipe = small_pipeline()
        self.taken_back = 0

    @contextmanager
    def __call__(self) -> Iterator[LoadedCheckpoint]:
        dtype = torch.float32
        yield loaded_checkpoint(self.pipe, name="small", kind="pipeline", weights_sha256=None, dtype=dtype)
        self.taken_back += 1


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def pipeline(source: Source) -> ArmPipeline:
    return ArmPipeline(source(), torch.device("cpu"))


def test_preset_stays_for_an_equal_arm_and_is_taken_back_for_another(pipeline: ArmPipeline, source: Source) -> None:
    with pipeline.prepared(CACHED) as pipe:
        assert pipe is source.pipe is pipeline.pipe
        applied = current(pipe)
        assert applied is not None
    assert current(source.pipe) is applied
    with pipeline.prepared(CACHED) as pipe:
        assert current(pipe) is applied
    with pipeline.prepared(BASELINE) as pipe:
        assert current(pipe) is not applied
        assert "encode_prompt" not in vars(pipe)
    with pipeline.prepared(CACHED) as pipe:
        assert current(pipe) not in (None, applied)


def test_release_takes_everything_back_once(pipeline: ArmPipeline, source: Source) -> None:
    assert pipeline.facts.name == "small"
    with pipeline.prepared(CACHED):
        pass
    pipeline.release()
    assert current(source.pipe) is None
    assert source.taken_back == 1
    pipeline.release()
    assert source.taken_back == 1
    with pytest.raises(AssertionError, match="released"):
        _ = pipeline.pipe
    pipeline.synchronize()


def test_other_attention_and_precision_last_as_long_as_their_arm(pipeline: ArmPipeline, source: Source) -> None:
    weight = source.pipe.transformer.proj_out.weight
    # More bits than the checkpoint has, which TF32 rounds.
    weight.data.mul_(1.0001)
    before = weight.detach().clone()
    flash = torch.backends.cuda.flash_sdp_enabled
    was, others = flash(), (torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled())
    with pipeline.prepared(replace(BASELINE, other_attention=True)):
        assert not flash()
        assert torch.backends.cuda.math_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
        assert torch.equal(weight, before)
    assert flash() == was
    assert (torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()) == others
    with pipeline.prepared(replace(BASELINE, other_precision=True)):
        assert not torch.equal(weight, before)
        assert flash() == was
    assert torch.equal(weight, before)


def test_latents_are_captured_before_they_are_decoded() -> None:
    pipe = small_pipeline()
    decoded: list[torch.Tensor] = []
    decode = pipe.vae.decode

    def decode_and_spoil(latents: torch.Tensor, *rest: Any, **named: Any) -> Any:
        decoded.append(latents.clone())
        result = decode(latents, *rest, **named)
        latents.zero_()
        return result

    pipe.vae.decode = decode_and_spoil
    with captured_latents(pipe) as captured:
        inside = render(pipe, steps=1, prompts=("a", "b"), seeds=(1, 2))
    assert pipe.vae.decode is decode_and_spoil
    assert np.array_equal(inside, render(pipe, steps=1, prompts=("a", "b"), seeds=(1, 2)))
    assert len(captured) == 1
    assert captured[0].dtype == np.float32
    assert np.array_equal(captured[0], decoded[0].numpy())
    assert len(captured[0]) == 2


def inputs_of(transformer: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    config, draw = transformer.config, torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(dtype)

    return {
        "hidden_states": drawn(1, 4, config.in_channels),
        "encoder_hidden_states": drawn(1, 3, config.joint_attention_dim),
        "pooled_projections": drawn(1, config.pooled_projection_dim),
        "img_ids": torch.zeros(4, 3),
        "txt_ids": torch.zeros(3, 3),
    }


def test_bfloat16_computes_in_float32_at_its_own_times() -> None:
    transformer = small_pipeline().transformer
    wide = copy.deepcopy(transformer.to(torch.bfloat16)).float()
    inputs = inputs_of(transformer, torch.bfloat16)
    time, guidance = torch.tensor([150 / 256]), torch.tensor([2.53])
    seen: list[list[torch.Tensor]] = []
    embed = transformer.time_text_embed.forward

    def noted(*values: torch.Tensor) -> Any:
        seen.append(list(values))
        return embed(*values)

    transformer.time_text_embed.forward = noted
    given = {**inputs, "timestep": time, "guidance": guidance, "return_dict": False}
    (narrow,) = transformer(**given)
    with use_other_precision(small := _Holder(transformer)):
        (other,) = small.transformer(**given)
    (again,) = transformer(**given)
    assert transformer.time_text_embed.forward is noted
    assert narrow.dtype is other.dtype is torch.bfloat16
    assert torch.equal(narrow, again)
    assert not torch.equal(narrow, other)
    # The embedding gets in float32 what it got in bfloat16, where both are rounded after they are multiplied.
    exact = [(value.to(torch.bfloat16) * 1000).float() for value in (time, guidance)]
    assert [value.dtype for value in seen[1]] == [torch.float32] * 3
    assert all(torch.equal(value, expected) for value, expected in zip(seen[1], exact, strict=False))
    assert torch.equal(seen[1][2], inputs["pooled_projections"].float())
    floats = {name: value.float() for name, value in inputs.items()}
    (expected,) = wide(**floats, timestep=exact[0] / 1000, guidance=exact[1] / 1000, return_dict=False)
    torch.testing.assert_close(other, expected.to(torch.bfloat16), rtol=0.02, atol=1e-3)


class _Holder:
    """A pipeline, as far as its precision goes."""

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_of_every_precision_come_back_as_they_were(dtype: torch.dtype) -> None:
    transformer = small_pipeline().transformer.to(dtype)
    for value in transformer.parameters():
        # In float32 more bits than the checkpoint has, which TF32 rounds.
        value.data.mul_(1.0001)
    transformer.register_buffer("wide", torch.arange(3, dtype=torch.float64) / 3)
    transformer.register_buffer("narrow", torch.arange(3, dtype=torch.float16) / 3)
    transformer.register_buffer("whole", torch.arange(3))
    before = {name: (value, value.clone()) for name, value in _tensors(transformer)}
    with use_other_precision(_Holder(transformer)):
        inside = dict(_tensors(transformer))
        assert {value.dtype for name, value in inside.items() if name != "whole"} == (
            {torch.float32} if dtype is torch.bfloat16 else {torch.float16, torch.float32, torch.float64}
        )
        weight, (_, values) = inside["proj_out.weight"], before["proj_out.weight"]
        assert torch.equal(weight, values) is (dtype is torch.bfloat16)
    after = dict(_tensors(transformer))
    assert after.keys() == before.keys()
    for name, (tensor, values) in before.items():
        assert after[name] is tensor, name
        assert tensor.dtype is values.dtype
        assert torch.equal(tensor, values), name


def _tensors(module: Any) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_memory_that_runs_out_is_refused_and_taken_back(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = small_pipeline().transformer.to(dtype)
    before = {name: value.clone() for name, value in _tensors(transformer)}

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("full")

    if dtype is torch.bfloat16:
        monkeypatch.setattr(torch.nn.Module, "to", full)
        doing = "turning the transformer into float32"
    else:
        monkeypatch.setattr("kontext_fast.verify.arm_pipeline._tf32", full)
        doing = "rounding the weights of the transformer to TF32"
    with (
        pytest.raises(OutOfMemory, match=doing),
        use_other_precision(_Holder(transformer)),
    ):
        pass
    assert all(torch.equal(value, before[name]) for name, value in _tensors(transformer))


@pytest.mark.parametrize(
    ("value", "kept"),
    [(1.0, 1.0), (1 + 2**-11, 1.0), (1 + 3 * 2**-11, 1 + 2**-9), (-(1 + 2**-10), -(1 + 2**-10)), (3.14159, 3.140625)],
)
def test_tf32_keeps_ten_bits_and_rounds_to_even(value: float, kept: float) -> None:
    pipe = small_pipeline()
    layer = pipe.transformer.proj_out
    layer.weight.data.fill_(value)
    seen: list[torch.Tensor] = []
    with use_other_precision(pipe):
        assert (layer.weight == kept).all()
        layer.forward = lambda states: seen.append(states) or states
        layer(torch.full((1, 2), value))
        del layer.forward
    assert (seen[0] == kept).all()
    layer(torch.zeros(1, layer.in_features))
    assert (layer.weight == torch.tensor(value)).all()
