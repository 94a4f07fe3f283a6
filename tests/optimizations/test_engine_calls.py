"""What the engine does at the beginning and the end of calls, in one process and in one of several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.distributed as dist
from diffusers.hooks import HookRegistry

from kontext_fast.engine.ops import PortableOps
from kontext_fast.engine.pass_parallel import PassParallel
from kontext_fast.engine.ranks import Ranks
from kontext_fast.engine.transformer import Branch, EngineTransformer
from kontext_fast.errors import InvalidInput, KontextError
from kontext_fast.optimizations.call_tracking import tracker_of
from kontext_fast.optimizations.shared_encoding import _SAMPLED
from kontext_fast.optimizations.techniques.engine import Engine, EngineForward, engine_of
from kontext_fast.pipeline.edit import OF_FIRST_PROCESS
from kontext_fast.pipeline.lora import load_lora
from tests.engine.transformers import inputs_for
from tests.optimizations.engine_steps import Remembering, call_of, velocity
from tests.pipelines import small_pipeline

TWO = Engine(gpus=2)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return small_pipeline()


@pytest.fixture
def accelerated(pipe: Any) -> Iterator[Any]:
    with ExitStack() as undo:
        Engine().apply(pipe, undo)
        yield pipe


def test_forward_replaced_later_is_refused_in_a_call_and_when_it_is_restored() -> None:
    pipe, undo = small_pipeline(), ExitStack()
    Engine().apply(pipe, undo)
    pipe.transformer.forward = type(pipe.transformer).forward
    with pytest.raises(InvalidInput) as refused, call_of(pipe):
        pass
    assert str(refused.value) == (
        "Something replaced the transformer's forward after accelerate; put back what was there (a cache goes by "
        "pipe.transformer.disable_cache())."
    )
    with pytest.raises(KontextError) as broken:
        undo.close()
    assert str(broken.value) == ("The transformer's forward was replaced after accelerate; load the checkpoint again.")
    assert "forward" not in vars(pipe.transformer)


def test_lora_is_refused_while_weights_are_not_read(accelerated: Any) -> None:
    with pytest.raises(InvalidInput, match="load the LoRA before"), load_lora(accelerated, "lora.safetensors"):
        pass


@pytest.mark.parametrize("name", ["enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload"])
def test_offloading_is_refused_by_its_name(accelerated: Any, name: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        getattr(accelerated, name)()
    assert str(refused.value) == (
        f"{name} would move weights from under the engine; call revert(), then {name}, then accelerate again."
    )


def test_image_of_other_times_is_refused_in_whole_sentences(accelerated: Any) -> None:
    with call_of(accelerated):
        pass  # one that ran no step has no times

    def at_other_times() -> None:
        with call_of(accelerated) as call:
            velocity(accelerated, call, inputs_for(accelerated.transformer))
            call.memory["engine"][0].timesteps[0] += 1e-3

    with pytest.raises(KontextError) as wrong:
        at_other_times()
    assert str(wrong.value) == (
        "The pipeline ran at other timesteps than its scheduler announced, so the image is wrong; use a preset without "
        "the engine."
    )


def test_state_of_hooks_is_looked_for_in_a_call_only_where_modules_run_as_they_are() -> None:
    pipe, on = small_pipeline(), {}
    with ExitStack() as undo:
        Engine().apply(pipe, undo)
        transformer = pipe.transformer
        with call_of(pipe) as call:
            velocity(pipe, call, inputs_for(transformer))
            for name in ("time_text_embed", "transformer_blocks"):
                on[name] = Remembering()
                HookRegistry.check_if_exists_or_initialize(getattr(transformer, name)).register_hook(on[name], "it")
            HookRegistry.check_if_exists_or_initialize(transformer)
            transformer._reset_stateful_cache()
            assert [hook.resets for hook in on.values()] == [1, 0]
        for one_module in ((), (False,)):
            transformer._reset_stateful_cache(*one_module)
        transformer._reset_stateful_cache(recurse=False)
        assert [hook.resets for hook in on.values()] == [2, 1]


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    """Those of a program of this process alone, whose engine does what it does among several."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    alone = Ranks(torch.device("cpu"))
    monkeypatch.setattr("kontext_fast.engine.ranks.join", lambda *_: alone)
    yield alone
    dist.destroy_process_group()


@pytest.fixture
def shared(pipe: Any, ranks: Ranks) -> Iterator[EngineForward]:
    """The forward of `pipe` that agrees with all processes; the work of a step cannot be shared with none."""
    with ExitStack() as undo:
        TWO.apply(pipe, undo)
        forward = engine_of(pipe.transformer)
        assert forward is not None
        forward.engine = EngineTransformer(forward.engine.weights, PortableOps())
        yield forward


def test_call_agrees_at_every_pass_and_at_its_end(
    pipe: Any, shared: EngineForward, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreed: list[tuple[str, bool]] = []
    agree = ranks.agree

    def noted(doing: str, *, last: bool = False) -> None:
        agreed.append((doing, last))
        agree(doing, last=last)

    monkeypatch.setattr(ranks, "agree", noted)
    inputs = inputs_for(pipe.transformer)
    for other in (inputs, inputs, inputs_for(pipe.transformer, text=5)):
        with call_of(pipe) as call:
            velocity(pipe, call, other)
    first, again, of_another_size = agreed[::2]
    assert first == again != of_another_size
    assert all(last for _, last in agreed[1::2])
    monkeypatch.setattr(ranks, "_told", lambda *_: pytest.fail("a call that has ended in all processes says no more"))
    ranks.leave()


def test_inputs_are_sampled_once_and_compared_at_the_end(pipe: Any, shared: EngineForward) -> None:
    inputs = inputs_for(pipe.transformer)
    with call_of(pipe) as call:
        velocity(pipe, call, inputs)
        running = call.memory["engine"][0]
        sampled = running.sampled
        call.end_step()
        velocity(pipe, call, inputs)
        assert running.sampled is sampled
        assert sampled.shape == (1, 3, 64)

    def with_other_inputs() -> None:
        with call_of(pipe) as call:
            velocity(pipe, call, inputs)
            running = call.memory["engine"][0]
            running.sampled = torch.cat([running.sampled, -running.sampled])

    with pytest.raises(InvalidInput, match="given different images, prompts or seeds"):
        with_other_inputs()
    with pytest.raises(InvalidInput, match="given different images, prompts or seeds"), call_of(pipe) as call:
        call.memory[_SAMPLED] = torch.stack([torch.ones(1, 64), -torch.ones(1, 64)])  # of images


def test_encoders_are_shared_and_exchanged_before_a_step(
    pipe: Any, shared: EngineForward, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding = shared.encoding
    assert encoding is not None
    assert encoding.ranks is shared.ranks
    exchanged: list[Any] = []
    monkeypatch.setattr(encoding, "exchange", lambda call, *_: exchanged.append(call))
    with call_of(pipe, arguments={"image": "an image"}) as call:
        pipe.encode_prompt("a prompt", None, max_sequence_length=8)
        assert len(encoding._layouts) == 1
        velocity(pipe, call, inputs_for(pipe.transformer))
        assert exchanged == [call]


def test_calls_end_in_all_processes_as_in_this_one(
    pipe: Any, shared: EngineForward, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, ...]] = []
    tell = ranks._told
    monkeypatch.setattr(ranks, "_told", lambda *of_this: told.append(of_this) or tell(*of_this))
    with pytest.raises(ZeroDivisionError), call_of(pipe):
        raise ZeroDivisionError
    assert told == [(1, 0)], "that it was stopped"
    outer_calls = tracker_of(pipe)
    with call_of(pipe):
        other = type(pipe.scheduler).from_config(pipe.scheduler.config)
        own, pipe.scheduler = pipe.scheduler, other
        told.clear()
        with pytest.raises(InvalidInput) as refused, outer_calls.open(pipe):  # type: ignore[union-attr]
            pass
        pipe.scheduler = own
        assert str(refused.value) == ("One call at a time runs on several GPUs; wait until the other one has ended.")
        assert not told, "the outer one runs still"
    assert getattr(type(pipe), OF_FIRST_PROCESS)("a seed") == "a seed"
    assert getattr(type(pipe), OF_FIRST_PROCESS) == ranks.from_first


def test_nothing_is_shared_after_revert(pipe: Any, ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as undo:
        TWO.apply(pipe, undo)
    with ExitStack() as undo:
        Engine().apply(pipe, undo)
        assert not hasattr(type(pipe), OF_FIRST_PROCESS)
        for method in ("begin", "agree", "leave"):
            monkeypatch.setattr(ranks, method, lambda *_, **__: pytest.fail("it was reverted"))
        with call_of(pipe):
            pass


def test_death_of_a_process_in_a_step_is_named(
    pipe: Any, shared: EngineForward, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: Any) -> Any:
        raise RuntimeError("gloo: Connection closed by peer")

    monkeypatch.setattr(Branch, "step", closed)
    with pytest.raises(KontextError, match="Another process of this edit has ended"), call_of(pipe) as call:
        velocity(pipe, call, inputs_for(pipe.transformer))


def test_passes_that_are_missing_at_the_end_are_an_error(pipe: Any, shared: EngineForward, ranks: Ranks) -> None:
    passes = PassParallel(ranks)
    passes._velocities.append(torch.ones(1))
    with pytest.raises(KontextError, match="other passes than those of true CFG"), call_of(pipe) as call:
        call.memory["passes"] = passes
