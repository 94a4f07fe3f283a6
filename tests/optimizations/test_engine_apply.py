"""What applying the engine makes of its parameters: weights, operations, processes and facts, without a step."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kontext_fast.engine import weights as engine_weights
from kontext_fast.engine.graphs import recording
from kontext_fast.engine.host_memory import Uploads
from kontext_fast.engine.sequence_parallel import SequenceParallel
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.techniques import engine as technique
from kontext_fast.optimizations.techniques.engine import Engine, EngineForward, engine_of, save_quantized
from tests.engine.graphs.taped import TapeRecorder
from tests.optimizations.engine_steps import call_of
from tests.pipelines import small_pipeline


@pytest.fixture(scope="module")
def pipe() -> Any:
    return small_pipeline()


def applied(engine: Engine, pipe: Any, undo: ExitStack) -> tuple[EngineForward, Any]:
    facts = engine.apply(pipe, undo)
    forward = engine_of(pipe.transformer)
    assert forward is not None
    return forward, facts


@pytest.mark.parametrize(
    ("engine", "both"),
    [
        (Engine(), False),
        (Engine(originals="device"), False),
        (Engine(precision="fp8"), False),
        (Engine(precision="fp8", originals="device"), True),
        (Engine(precision="fp8", full_precision=(-1,)), True),
    ],
    ids=str,
)
def test_weights_are_held_in_both_precisions_where_both_are_needed(pipe: Any, engine: Engine, both: bool) -> None:
    before = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    with ExitStack() as undo:
        forward, facts = applied(engine, pipe, undo)
        weights, unquantized = forward.engine.weights, forward.engine._unquantized
        assert (unquantized is not None) == both
        assert unquantized is None or (unquantized.precision, unquantized.quantized) == ("bf16", {})
        assert weights.precision == engine.precision
        assert bool(weights.quantized) == (engine.precision == "fp8")
        assert facts["quantized"] == ("now" if engine.precision == "fp8" else None)
        assert facts["kernel"] == ("emulated" if engine.precision == "fp8" else "portable")
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.transformer.state_dict().items())


@pytest.mark.parametrize("full_precision", [(), (0,)])
def test_quantized_file_is_read_in_place_of_quantizing(pipe: Any, tmp_path: Path, full_precision: tuple[int]) -> None:
    file = tmp_path / "fp8.safetensors"
    with pytest.raises(InvalidInput) as refused:
        save_quantized(pipe, file)
    assert str(refused.value) == (
        "This pipeline does not run on the engine; accelerate it with the preset balanced first."
    )
    with ExitStack() as undo:
        forward, _ = applied(Engine(precision="fp8"), pipe, undo)
        save_quantized(pipe, file)
        made = forward.engine.weights.quantized
    stored = Engine(precision="fp8", quantized_file=file, full_precision=full_precision)
    with ExitStack() as undo, pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_weights, "_quantized", lambda *_: pytest.fail("it was quantized again"))
        forward, facts = applied(stored, pipe, undo)
        assert facts["quantized"] == "loaded"
        read = forward.engine.weights.quantized
        assert set(read) == set(made)
        assert all(torch.equal(matrix.values, made[name].values) for name, matrix in read.items())
    changed = small_pipeline()
    changed.transformer.transformer_blocks[0].attn.to_q.weight.data[0, 0] += 1
    with ExitStack() as undo, pytest.raises(InvalidInput, match="made from other weights"):
        stored.apply(changed, undo)
    with ExitStack() as undo, pytest.raises(InvalidInput, match="holds no int8 weights"):
        stored.model_copy(update={"precision": "int8"}).apply(pipe, undo)


def test_kernel_of_attention_that_is_named_runs(pipe: Any) -> None:
    with ExitStack() as undo:
        assert Engine(attention="math").apply(pipe, undo)["attention_kernel"] == "math"


def test_card_takes_bfloat16_alone_and_brings_what_a_call_makes_without_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As far as can be seen without one: weights stay on the CPU."""
    pipe, card = small_pipeline(), torch.device("cuda", 0)
    monkeypatch.setattr(type(pipe), "_execution_device", card)
    with ExitStack() as undo, pytest.raises(InvalidInput, match="not float32"):
        Engine().apply(pipe, undo)
    torch.nn.Module.to(pipe.transformer, dtype=torch.bfloat16)
    monkeypatch.setattr("kontext_fast.engine.dispatch.has_fused_kernels", lambda: False)
    monkeypatch.setattr(technique, "tokens_for_graphs", lambda _: 0)
    asked: list[tuple[Any, bool]] = []
    take = engine_weights.take_weights

    def on_the_cpu(*args: Any, device: Any, modulations_in_host_memory: bool, **kwargs: Any) -> Any:
        asked.append((device, modulations_in_host_memory))
        return take(*args, **kwargs)

    monkeypatch.setattr(engine_weights, "take_weights", on_the_cpu)
    for engine in (Engine(), Engine(modulations="host", precision="fp8", full_precision=(0,))):
        with ExitStack() as undo:
            forward, facts = applied(engine, pipe, undo)
            assert facts["step_graphs"] == "off: no row for this card"
            with call_of(pipe) as call:
                uploads = [key for key in call.memory if isinstance(key, Uploads)]
                assert len(uploads) == 1
                forward.before_first_step(call)
                assert uploads[0] not in call.memory
    assert asked == [(card, False), (card, True)]


def test_processes_are_joined_on_the_device_with_the_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kontext_fast.engine.ranks.join", lambda *of: of)
    meta = torch.device("meta")
    for transport in ("collectives", "peer_memory"):
        parallel = Engine(gpus=2, transport=transport)._parallel(meta)  # type: ignore[arg-type]
        assert parallel == SequenceParallel((2, meta), transport)  # type: ignore[arg-type]
    assert Engine()._parallel(meta) is None


@pytest.mark.parametrize("size", [2, 3])
def test_two_processes_can_each_run_a_pass(pipe: Any, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks: Any = SimpleNamespace(size=size, rank=0, everywhere=all, from_first=list)
    joined: list[tuple[Any, ...]] = []
    monkeypatch.setattr("kontext_fast.engine.ranks.join", lambda *of: joined.append(of) or ranks)
    monkeypatch.setattr(recording, "recorder_for", lambda _: TapeRecorder())
    monkeypatch.setattr(technique, "tokens_for_graphs", lambda _: 1000)
    engine = Engine(gpus=size, precision="fp8", full_precision=(0,))
    with ExitStack() as undo:
        forward, facts = applied(engine, pipe, undo)
        together = forward.engine
        assert forward.ranks is ranks
        assert joined == [(size, torch.device("cpu"))]
        assert together._parallel == SequenceParallel(ranks, "collectives")
        assert facts["step_graphs"]["up_to_tokens"] is None, "whatever their size"
        assert (forward.of_passes is not None) == (size == 2)
        if forward.of_passes is not None:
            alone = forward.of_passes
            assert alone._parallel is alone.graphs is None
            assert alone.weights is together.weights
            assert alone._unquantized is together._unquantized is not None
            assert alone.ops.kernel == facts["kernel"]
