"""The engine's forward, step by step in a call: what it takes, gives and keeps."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch

from kontext_fast.engine.transformer import EngineTransformer
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.techniques.engine import Engine, EngineForward, _RunningBranch, engine_of
from tests.engine.transformers import expected, inputs_for, relative_error
from tests.optimizations.engine_steps import call_of, velocity
from tests.pipelines import small_pipeline


@pytest.fixture(scope="module")
def pipe() -> Any:
    return small_pipeline()


def test_forward_takes_what_that_of_diffusers_takes_and_gives_what_it_gives(pipe: Any) -> None:
    inputs = inputs_for(pipe.transformer)
    names = ["hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "img_ids", "txt_ids"]
    signature = inspect.signature(pipe.transformer.forward)
    with ExitStack() as undo:
        Engine().apply(pipe, undo)
        assert inspect.signature(pipe.transformer.forward) == signature
        with call_of(pipe) as call:
            inputs["timestep"] = pipe.scheduler.timesteps[:1] / 1000
            output = pipe.transformer(**inputs).sample
            call.end_step()
            inputs["timestep"] = pipe.scheduler.timesteps[1:2] / 1000
            positional = pipe.transformer(*(inputs[name] for name in names), inputs["guidance"], return_dict=False)
            call.end_step()
        inputs["timestep"] = pipe.scheduler.timesteps[:1] / 1000
        assert relative_error(output, expected(pipe.transformer, inputs)) < 1e-4
        # Positions of one sample of a batch, as earlier versions of diffusers gave them.
        with call_of(pipe) as call:
            of_a_batch = {name: inputs[name][None] for name in ("img_ids", "txt_ids")}
            assert torch.equal(velocity(pipe, call, {**inputs, **of_a_batch}), output)
    inputs["timestep"] = pipe.scheduler.timesteps[1:2] / 1000
    assert len(positional) == 1
    assert relative_error(positional[0], expected(pipe.transformer, inputs)) < 1e-4


@pytest.mark.parametrize("blocks", ["controlnet_block_samples", "controlnet_single_block_samples"])
def test_controlnet_is_refused(pipe: Any, blocks: str) -> None:
    with ExitStack() as undo:
        Engine().apply(pipe, undo)
        with call_of(pipe) as call, pytest.raises(InvalidInput, match="does not support ControlNet"):
            velocity(pipe, call, inputs_for(pipe.transformer), **{blocks: []})


def test_call_is_told_when_its_first_step_begins_and_times_are_compared_behind_the_last(pipe: Any) -> None:
    with ExitStack() as undo:
        Engine().apply(pipe, undo)
        forward = engine_of(pipe.transformer)
        assert forward is not None
        begun: list[Any] = []
        forward.before_first_step = begun.append
        inputs = inputs_for(pipe.transformer)
        with call_of(pipe, steps=2) as call:
            velocity(pipe, call, inputs)
            running: _RunningBranch = call.memory["engine"][0]
            assert running._differs is None, "a host would wait for the GPU here"
            call.end_step()
            velocity(pipe, call, inputs)
            assert running._differs is not None
            assert not running.compare_times()
            call.end_step()
        assert begun == [call]


def test_scheduler_that_is_told_exactly_is_not_rounded(pipe: Any) -> None:
    with ExitStack() as undo:
        rounded = small_pipeline()
        torch.nn.Module.to(rounded.transformer, dtype=torch.bfloat16)
        Engine().apply(rounded, undo)
        velocities = []
        for exact in (False, True):
            with call_of(rounded, steps=3) as call:
                call.exact_times = exact
                call.end_step()
                velocities.append(velocity(rounded, call, inputs_for(rounded.transformer)))
        assert not torch.equal(*velocities)


def test_times_of_steps_are_compared_with_those_announced() -> None:
    announced = torch.tensor([1.0, 0.75, 0.5])
    branch: Any = None
    skipped = _RunningBranch(branch, batch=2, timesteps=announced, actual={1: announced[1:2], 2: announced[2:]})
    assert not skipped.compare_times()
    running = _RunningBranch(branch, batch=2, timesteps=announced, actual={0: announced[:1].expand(2)})
    first = running.compare_times()
    assert not first
    assert running.compare_times() is first, "computed once"
    running.actual[1] = torch.tensor([0.75, 0.7])
    assert running.compare_times()


def test_steps_in_full_precision_are_those_of_the_call_or_of_its_place_in_one(pipe: Any) -> None:
    with ExitStack() as undo:
        Engine(precision="fp8", full_precision=(0, -1)).apply(pipe, undo)
        forward = engine_of(pipe.transformer)
        assert forward is not None
        with call_of(pipe, steps=4) as call:
            velocity(pipe, call, inputs_for(pipe.transformer))
            assert call.memory["engine"][0].branch._full_precision == {0, 3}
    for place, steps in (((0, 3), {0, 1}), ((1, 3), set()), ((2, 3), {0, 1}), ((2, 4), set())):
        call_at: Any = SimpleNamespace(place=place)
        assert forward._full_precision(call_at, 2) == steps


def test_another_forward_is_no_engine() -> None:
    transformer = torch.nn.Identity()
    transformer.forward = MethodType(lambda self, x: x, transformer)
    assert engine_of(transformer) is None


def test_pass_alone_is_run_by_the_engine_of_passes(pipe: Any) -> None:
    """Where two processes share the passes, and else by that of all processes."""
    with ExitStack() as undo:
        Engine().apply(pipe, undo)
        forward = engine_of(pipe.transformer)
        assert isinstance(forward, EngineForward)
        engine = forward.engine
        of_passes = forward.of_passes = EngineTransformer(engine.weights, engine.ops)
        asked: list[tuple[int, Any, int]] = []

        class Passes:
            def velocity(self, index: int, branch: Any, step: int, image: Any, text: Any) -> Any:
                asked.append((index, branch, step))
                return branch.step(step, image, text)

        for shared, runs in ((Passes(), of_passes), (None, engine)):
            forward._passes = lambda _, shared=shared: shared  # type: ignore[method-assign,misc]
            with call_of(pipe) as call:
                velocity(pipe, call, inputs_for(pipe.transformer))
                branch = call.memory["engine"][0].branch
                assert branch._engine is runs
                assert asked == [(0, branch, 0)] if shared else True
            asked.clear()
