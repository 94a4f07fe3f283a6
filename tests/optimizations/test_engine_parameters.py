"""What the engine says of itself and of requests, without running it: parameters, steps, labels and refusals."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import _get_current_function_mode

from kontext_fast.engine.dispatch import fastest_attention
from kontext_fast.engine.host_memory import Uploads
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.call_tracking import track_calls
from kontext_fast.optimizations.techniques import engine as technique
from kontext_fast.optimizations.techniques.engine import (
    Engine,
    EngineForward,
    _require_supported,
    _upload_without_waiting,
    require_engine,
)
from kontext_fast.optimizations.techniques.step_reuse import StepReuse
from kontext_fast.pipeline.device import Machine
from kontext_fast.records.schema import EMULATED
from tests.pipelines import small_pipeline

PLAIN = {"precision": "bf16", "attention": "auto"}
CPU = Machine(
    device="cpu", memory_bytes=2**34, cxx="g++", cc="gcc", triton=True, torch="2.13.0", platform="linux-x86_64"
)


@pytest.mark.parametrize(
    "other",
    [
        {"precision": "fp8", "full_precision": [0, -1]},
        {"modulations": "host"},
        {"originals": "device"},
        {"gpus": 2},
        {"gpus": 2, "transport": "peer_memory"},
        {"graphs": "never"},
    ],
    ids=lambda other: list(other)[-1],
)
def test_parameters_are_named_where_they_are_not_by_default(other: dict[str, Any]) -> None:
    assert Engine().parameters() == PLAIN
    assert Engine(**other).parameters() == {**PLAIN, **other}


def test_steps_in_full_precision_are_counted_from_either_end() -> None:
    engine = Engine(precision="fp8", full_precision=(0, 3, 4, -1, -4, -5))
    assert [engine.full_precision_steps(total) for total in (1, 4, 5)] == [{0}, {0, 3}, {0, 1, 3, 4}]
    assert Engine(precision="fp8", full_precision=(-2,)).full_precision_steps(2) == {0}


def test_auto_stands_for_a_kernel_where_the_engine_runs() -> None:
    mps = Machine(device="mps", memory_bytes=1, cxx=None, cc=None, triton=False, torch="2.13.0", platform="x")
    assert Engine().on_machine(CPU) == Engine(attention="native")
    assert Engine().on_machine(replace(CPU, device="cuda")).attention == fastest_attention("cuda", None).name
    for engine, machine in ((Engine(), mps), (Engine(attention="math"), CPU)):
        assert engine.on_machine(machine) is engine
    assert Engine.choices()["attention"][0] == "auto"
    assert {"native", "math"} <= set(Engine.choices()["attention"])
    assert Engine.choices()["graphs"] == ("auto", "never")


def test_auto_may_have_been_any_kernel_that_rounds_only() -> None:
    earlier = {"precision": "bf16"}  # before kernels could be chosen
    for ran in (earlier, *({**earlier, "attention": name} for name in ("default", "native", "math", "cudnn"))):
        assert Engine().is_what_ran(ran)
        assert not Engine(precision="fp8").is_what_ran(ran)
        assert Engine(attention="math").is_what_ran(ran) == (ran.get("attention") == "math")
    assert Engine().is_what_ran(Engine().parameters())
    lossy = Engine(attention="flash3_fp8")
    assert not Engine().is_what_ran(lossy.parameters())
    assert lossy.is_what_ran(lossy.parameters())


def test_machine_without_the_fused_kernels_is_labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = replace(CPU, device="cuda")
    assert Engine().label_on(CPU) is None
    assert Engine(precision="fp8").label_on(CPU) == EMULATED
    assert Engine(precision="fp8").label_on(gpu) is None
    monkeypatch.setattr("kontext_fast.engine.dispatch.has_fused_kernels", lambda: False)
    assert Engine().label_on(gpu) == "kernel: portable (plain PyTorch, not the fused kernels)"


def test_gpus_that_share_an_edit_are_named_and_are_gpus() -> None:
    assert Engine().label(architecture_only=False) is None
    assert Engine(gpus=4).label(architecture_only=True) == (
        "4 GPUs together; memory and energy are those of the first one"
    )
    assert Engine(gpus=2, transport="peer_memory").refusal(CPU) == (
        "GPUs alone can write to each other's memory; use transport=collectives"
    )
    for one in (Engine(gpus=2), Engine(transport="peer_memory")):
        assert one.refusal(CPU) is None


def test_optimization_that_needs_an_engine_says_so() -> None:
    pipe = SimpleNamespace(transformer=torch.nn.Identity())
    with ExitStack() as undo, pytest.raises(InvalidInput) as caught:
        StepReuse().apply(pipe, undo)
    assert str(caught.value) == "step_reuse needs the engine; apply the preset step_reuse, which has both."
    # Whatever else is its forward.
    pipe.transformer.forward = lambda x: x
    with pytest.raises(InvalidInput, match=r"^another needs the engine; apply the preset another,"):
        require_engine(pipe.transformer, "another")


def test_everything_unsupported_is_named_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        _require_supported({"ip_mask": 1, "scale": 1, "other": 2}, None, [])
    assert str(caught.value) == (
        "The engine does not support ControlNet and attention arguments (ip_mask, other; IP-Adapter is one of them); "
        "leave one of the two out."
    )
    _require_supported({"scale": 0.5}, None, None)
    _require_supported(None, None, None)


def test_transformer_whose_weights_wait_in_host_memory_runs_in_calls_alone() -> None:
    transformer = torch.nn.Identity()
    waiting = SimpleNamespace(weights=SimpleNamespace(sources=SimpleNamespace(host_bytes=1)))
    forward: Any = SimpleNamespace(_calls=SimpleNamespace(current=None), _owner=lambda: transformer, engine=waiting)
    with pytest.raises(InvalidInput) as caught:
        EngineForward.__call__(forward, transformer, torch.ones(1))
    assert str(caught.value) == (
        "This transformer runs in calls of accelerated pipelines only, since its original weights wait in host memory; "
        "accelerate the pipeline that called it too, or revert the acceleration."
    )
    waiting.weights.sources.host_bytes = 0
    assert EngineForward.__call__(forward, transformer, torch.ones(1)) == 1


@pytest.mark.parametrize(
    ("engine", "quantized"),
    [
        (Engine(), {False}),
        (Engine(precision="fp8"), {True}),
        (Engine(precision="int8", full_precision=(-1,)), {True, False}),
    ],
)
def test_kernels_of_every_precision_that_runs_are_compiled_ahead(
    engine: Engine, quantized: set[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def precompile_calls(transformer: Any, device: Any, *, quantize: bool) -> list[Any]:
        asked.append((transformer, device))
        return [quantize]

    def ops_of(*of: Any) -> Any:
        assert of == ("cuda", engine.precision, "auto")
        return SimpleNamespace(precompile_calls=precompile_calls)

    monkeypatch.setattr(technique, "make_ops", ops_of)
    pipe = SimpleNamespace(_execution_device=torch.device("cuda"), transformer="the transformer")
    calls = engine.precompile_calls(pipe)
    assert len(calls) == len(quantized)
    assert set(calls) == quantized
    assert set(asked) == {("the transformer", torch.device("cuda"))}


EMBEDDED = {"negative_prompt_embeds": 1, "negative_pooled_prompt_embeds": 2, "true_cfg_scale": 2.0}


@pytest.mark.parametrize(
    ("arguments", "shared"),
    [
        ({"negative_prompt": "", "true_cfg_scale": 1.5}, True),
        (EMBEDDED, True),
        ({"negative_prompt": "blurry", "true_cfg_scale": 1.0}, False),
        ({"negative_prompt": "blurry"}, False),
        ({"true_cfg_scale": 2.0}, False),
        *(({name: value for name, value in EMBEDDED.items() if name != missing}, False) for missing in EMBEDDED),
    ],
)
def test_two_processes_share_passes_where_a_call_has_two(arguments: dict[str, Any], shared: bool) -> None:
    ranks, call = object(), SimpleNamespace(arguments=arguments, memory={})

    def passes(ranks: Any, of_passes: Any) -> Any:
        return EngineForward._passes(SimpleNamespace(ranks=ranks, of_passes=of_passes), call)  # type: ignore[arg-type]

    assert passes(None, object()) is None
    assert passes(ranks, None) is None
    found = passes(ranks, object())
    assert (found is not None) == shared
    assert passes(ranks, object()) is found, "of one call they are the same for both"
    assert found is None or found._ranks is ranks


@pytest.mark.parametrize("compiled", [None, "vae", "text_encoder", "text_encoder_2", "wrapped vae"])
def test_uploads_do_not_wait_until_the_first_step_of_a_call(compiled: str | None) -> None:
    pipe = small_pipeline()
    if compiled == "wrapped vae":
        pipe.vae = torch.compile(pipe.vae)
    elif compiled is not None:
        getattr(pipe, compiled)._compiled_call_impl = object()

    def uploads() -> bool:
        return isinstance(_get_current_function_mode(), Uploads)

    with ExitStack() as undo:
        calls = track_calls(pipe, undo)
        before_first_step = _upload_without_waiting(calls, undo)
        with calls.open(pipe):
            assert uploads() == (compiled is None)
        assert not uploads(), "a call that ended before its first step"
        with calls.open(pipe):
            call = calls.current
            assert call is not None
            before_first_step(call)
            assert not uploads()
            before_first_step(call)
        assert not uploads()
    with calls.open(pipe):
        assert not uploads()
