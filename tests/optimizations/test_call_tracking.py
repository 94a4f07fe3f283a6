"""Watching the requests of one pipeline: nested, with another scheduler, shared and released."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook
from diffusers import DiffusionPipeline, FluxKontextPipeline
from diffusers.hooks import apply_group_offloading

from kontext_fast.errors import Caution, InvalidInput
from kontext_fast.optimizations.call_tracking import CallTracker, PipelineCall, track_calls
from kontext_fast.optimizations.patching import device_without_hooks
from tests.pipelines import render, small_pipeline


@pytest.fixture
def pipe() -> Any:
    return small_pipeline()


def test_tracker_is_shared_and_removed_with_its_last_user(pipe: Any) -> None:
    original = type(pipe)
    first, second = ExitStack(), ExitStack()
    requests = track_calls(pipe, first)
    assert track_calls(pipe, second) is requests
    assert type(pipe).__mro__[1] is original
    first.close()
    assert type(pipe) is not original
    second.close()
    assert type(pipe) is original


def test_steps_and_passes_are_numbered_per_call(pipe: Any) -> None:
    seen: list[tuple[int, int, int]] = []
    opened: list[PipelineCall] = []
    with ExitStack() as undo:
        requests = track_calls(pipe, undo)

        def remember(request: PipelineCall) -> None:
            opened.append(request)
            request.memory["test"] = "here"

        requests.on_begin(remember, undo)
        inner = pipe.transformer.forward

        def forward(**given: Any) -> Any:
            assert requests.current is not None
            seen.append((requests.current.step, requests.current.begin_pass(), requests.current.total_steps))
            return inner(**given)

        pipe.transformer.forward = forward
        render(pipe, steps=2, negative="blurry")
    assert seen == [(0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 2)]
    assert opened[0].memory == {}
    assert requests.current is None


def test_replaced_scheduler_is_tracked(pipe: Any) -> None:
    with ExitStack() as undo:
        requests = track_calls(pipe, undo)
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        render(pipe, steps=3)
        assert requests.last.kinds == ("full",) * 3
        assert "step" not in vars(pipe.scheduler)


def test_nested_call_is_tracked_apart(pipe: Any) -> None:
    inner: list[tuple[Any, ...]] = []
    running: list[int] = []
    with ExitStack() as undo:
        requests = track_calls(pipe, undo)

        def nest(step: int) -> None:
            if step == 0:
                outer, scheduler = requests.current, pipe.scheduler
                pipe.scheduler = type(scheduler).from_config(scheduler.config)
                render(pipe, steps=1, on_step=lambda _: running.append(requests.running_calls))
                pipe.scheduler = scheduler
                inner.append(requests.last.kinds)
                running.append(requests.running_calls)
                assert requests.current is outer
                # The outer call has the pipeline still.
                with ThreadPoolExecutor(1) as pool, pytest.raises(InvalidInput, match=r"^This pipeline is in another"):
                    pool.submit(render, pipe, steps=1).result()

        render(pipe, steps=3, on_step=nest)
        assert running == [2, 1]
        assert requests.running_calls == 0
        assert inner == [("full",)]
        assert requests.last.kinds == ("full",) * 3


def test_step_is_skipped_if_all_its_passes_are() -> None:
    request = PipelineCall(pipe=None)
    for marks in (["skipped", "full"], ["skipped", "skipped"], []):
        for mark in marks:
            request.mark(mark)  # type: ignore[arg-type]
        request.end_step()
    assert request.kinds == ["full", "skipped", "full"]


def test_marks_per_sample_give_kinds_per_sample() -> None:
    request = PipelineCall(pipe=None)
    request.mark("skipped", "full", "skipped")
    request.end_step()
    # Under true CFG the second pass may decide otherwise, or for all samples at once.
    request.mark("skipped", "full", "skipped")
    request.mark("skipped")
    request.end_step()
    request.mark("skipped", "skipped", "skipped")
    request.mark("full")
    request.end_step()
    request.mark("skipped", "skipped")
    request.end_step()
    request.end_step()
    some = ("skipped", "full", "skipped")
    assert request.sample_kinds == [some, some, ("full",) * 3, ("skipped",) * 2, ("full",)]
    assert request.kinds == ["full", "full", "full", "skipped", "full"]


def test_computed_steps_are_counted_per_branch_and_sample() -> None:
    request = PipelineCall(pipe=None)
    for marks in ([("full", "full"), ("full",)], [("skipped", "full"), ("skipped",)]):
        for kinds in marks:
            request.mark(*kinds)  # type: ignore[arg-type]
        request.end_step()
    assert request.computed_counts() == [[1, 2], [1]]
    assert PipelineCall(pipe=None).computed_counts() == []


def test_error_of_a_begin_callback_is_raised_by_the_call(pipe: Any) -> None:
    def refuse(request: PipelineCall) -> None:
        raise ValueError("not now")

    with ExitStack() as undo:
        requests: CallTracker = track_calls(pipe, undo)
        requests.on_begin(refuse, undo)
        with pytest.raises(ValueError, match="not now"):
            render(pipe)
        assert requests.current is None
    render(pipe, steps=1)


def test_device_of_a_tracked_pipeline_is_that_of_diffusers(pipe: Any) -> None:
    find = DiffusionPipeline._execution_device.fget
    with ExitStack() as undo:
        track_calls(pipe, undo)
        assert "_execution_device" in vars(type(pipe))  # which is quicker than that of diffusers
        assert device_without_hooks(pipe) == pipe._execution_device == find(pipe) == torch.device("cpu")
        pipe.text_encoder.to("meta")
        assert pipe._execution_device == find(pipe)
        pipe.vae = None
        assert pipe._execution_device == find(pipe)


@pytest.mark.parametrize("offloaded", ["components", "a group of layers"])
def test_device_with_hooks_is_asked_of_diffusers(pipe: Any, offloaded: str) -> None:
    with ExitStack() as undo:
        track_calls(pipe, undo)
        if offloaded == "components":
            for part in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2, pipe.transformer):
                part._hf_hook = AlignDevicesHook(execution_device="meta")
            expected = torch.device("meta")
        else:
            expected = torch.device("cpu")
            layer = pipe.text_encoder_2.encoder.block[0].layer[0]
            apply_group_offloading(layer, expected, expected, "leaf_level")
        assert device_without_hooks(pipe) is None
        assert pipe._execution_device == expected


def test_device_of_ones_own_class_is_kept() -> None:
    class Elsewhere(FluxKontextPipeline):  # type: ignore[misc]
        _execution_device = torch.device("meta")

    pipe = small_pipeline()
    pipe.__class__ = Elsewhere
    with ExitStack() as undo:
        track_calls(pipe, undo)
        assert pipe._execution_device == torch.device("meta")


def sentence(refused: Callable[[], object]) -> str:
    with pytest.raises(InvalidInput) as caught:
        refused()
    return str(caught.value)


def test_refusals_during_a_call_say_what_to_do(pipe: Any) -> None:
    own = "pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)."
    with ExitStack() as undo, ThreadPoolExecutor(1) as thread:
        calls = track_calls(pipe, undo)
        with calls.open(pipe):
            assert sentence(calls.close) == (
                "A call of this pipeline is running; revert the acceleration when it has ended."
            )
            assert sentence(calls.open(copy.copy(pipe)).__enter__) == (
                "The scheduler of this pipeline is in another call; give every copy of a pipeline one of its "
                f"own: {own}"
            )
            assert thread.submit(sentence, calls.open(pipe).__enter__).result() == (
                "This pipeline is in another call; give every thread a copy of it, made by copy.copy(pipe), with a "
                "scheduler of its own, made by type(pipe.scheduler).from_config(pipe.scheduler.config)."
            )
            for method in (pipe.scheduler.step, pipe.scheduler.set_timesteps):
                assert thread.submit(sentence, method).result() == (
                    f"This scheduler is in a call of an accelerated pipeline; give every other pipeline one of its "
                    f"own: {own}"
                )
        assert calls.running_calls == 0
        pipe.encode_prompt = pipe.encode_prompt
        assert sentence(lambda: calls.replace_method(pipe, "encode_prompt", lambda *_: None, undo)) == (
            "Something replaced encode_prompt of this pipeline; take that off (del pipe.encode_prompt), then "
            "accelerate again."
        )


def test_other_inputs_of_a_pass_are_refused() -> None:
    prompt, positions = object(), object()
    call = PipelineCall(pipe=None)
    for _ in range(2):
        passes = ((prompt, positions), (positions, prompt), (prompt, prompt))
        assert [call.begin_pass(*inputs) for inputs in passes] == [0, 1, 2]
        call.end_step()
    assert sentence(lambda: call.begin_pass(prompt, prompt)) == (
        "The transformer got other prompts or positions than at the step before; keep them over a call, and run other "
        "pipelines with this transformer before or after it."
    )


def test_caution_is_kept_and_warned_of() -> None:
    call = PipelineCall(pipe=None)
    with pytest.warns(Caution, match=r"^mind this$"):
        call.caution("mind this")
    assert call.cautions == ["mind this"]


def test_warning_is_at_the_line_that_cautions() -> None:
    with pytest.warns(Caution) as warned:
        PipelineCall(pipe=None).caution("mind this")
    assert warned[0].filename == __file__
