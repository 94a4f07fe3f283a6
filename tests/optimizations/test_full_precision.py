"""An engine that holds its weights in both precisions and takes one or the other at each step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from kontext_fast.errors import InvalidInput, Refused
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.techniques.engine import Engine, save_quantized
from kontext_fast.optimizations.techniques.step_reuse import StepReuse
from tests.pipelines import render, small_pipeline


@pytest.fixture(scope="module")
def pipe() -> Any:
    return small_pipeline()


def run(pipe: Any, *optimizations: Optimization, **changes: Any) -> Any:
    with accelerate(pipe, optimizations, quiet=True):
        return render(pipe, **changes)


def test_all_or_no_steps_in_full_precision_are_other_engines(pipe: Any) -> None:
    untouched = render(pipe)
    in_fp8, in_full = run(pipe, Engine(precision="fp8")), run(pipe, Engine())
    np.testing.assert_array_equal(run(pipe, Engine(precision="fp8", full_precision=(0, 1, 2, 3))), in_full)
    np.testing.assert_array_equal(run(pipe, Engine(precision="fp8", full_precision=(4, -5))), in_fp8)
    assert not np.array_equal(in_fp8, in_full)
    np.testing.assert_array_equal(render(pipe), untouched)


def test_named_steps_are_in_full_precision_and_the_others_not(pipe: Any) -> None:
    """What is in full precision is exact; the later a step, the less of the rounding before it is left to correct."""
    full = run(pipe, Engine())
    mixed = {steps: run(pipe, Engine(precision="fp8", full_precision=steps)) for steps in ((), (0,), (-1,), (-2, -1))}
    errors = {steps: float(np.abs(image - full).mean()) for steps, image in mixed.items()}
    assert len({image.tobytes() for image in mixed.values()}) == len(mixed)
    assert errors[(-2, -1)] < errors[()]
    np.testing.assert_array_equal(run(pipe, Engine(precision="fp8", full_precision=(3,))), mixed[(-1,)])


def test_both_branches_of_true_cfg_take_the_same_precision(pipe: Any) -> None:
    whole = run(pipe, Engine(precision="fp8", full_precision=(0, 1, 2, 3)), negative="blurry")
    np.testing.assert_array_equal(whole, run(pipe, Engine(), negative="blurry"))


def test_skipped_steps_go_with_it(pipe: Any) -> None:
    reuse = StepReuse(computed=3)
    full = run(pipe, Engine(), reuse, steps=8)
    mixed = run(pipe, Engine(precision="fp8", full_precision=(-2, -1)), reuse, steps=8)
    rounded = run(pipe, Engine(precision="fp8"), reuse, steps=8)
    assert np.abs(mixed - full).mean() < np.abs(rounded - full).mean()


def test_a_call_of_one_step_can_stand_for_a_step_of_many(pipe: Any) -> None:
    from contextlib import ExitStack

    from kontext_fast.optimizations.call_tracking import PipelineCall, track_calls

    def one_step(place: tuple[int, int] | None) -> Any:
        with accelerate(pipe, [Engine(precision="fp8", full_precision=(-1,))], quiet=True), ExitStack() as undo:

            def put(call: PipelineCall) -> None:
                call.place = place

            track_calls(pipe, undo).on_begin(put, undo)
            return render(pipe, steps=1)

    full, rounded = run(pipe, Engine(), steps=1), run(pipe, Engine(precision="fp8"), steps=1)
    np.testing.assert_array_equal(one_step(None), full)
    np.testing.assert_array_equal(one_step((2, 3)), full)
    np.testing.assert_array_equal(one_step((0, 3)), rounded)


def test_weights_that_change_under_it_are_noticed() -> None:
    pipe = small_pipeline()
    with accelerate(pipe, [Engine(precision="fp8", full_precision=(-1,))], quiet=True):
        render(pipe)
        pipe.transformer.transformer_blocks[0].attn.to_q.weight.data.add_(1e-2)
        with pytest.raises(InvalidInput, match="changed after they were quantized"):
            render(pipe)


def _contents(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(file, "pt") as opened:
        names = opened.keys()
        return {name: opened.get_tensor(name) for name in names}, opened.metadata()


def test_its_quantized_weights_are_those_of_the_engine_in_fp8(pipe: Any, tmp_path: Any) -> None:
    for name, engine in (("fp8", Engine(precision="fp8")), ("both", Engine(precision="fp8", full_precision=(-1,)))):
        with accelerate(pipe, [engine], quiet=True):
            save_quantized(pipe, tmp_path / name)
    # Not byte by byte: the order of the metadata in a file is random.
    (alone, its_metadata), (both, metadata) = (_contents(tmp_path / name) for name in ("fp8", "both"))
    assert its_metadata == metadata
    assert alone.keys() == both.keys()
    assert all(torch.equal(alone[name].view(torch.uint8), both[name].view(torch.uint8)) for name in alone)
    loaded = Engine(precision="fp8", full_precision=(-1,), quantized_file=tmp_path / "fp8")
    np.testing.assert_array_equal(run(pipe, loaded), run(pipe, Engine(precision="fp8", full_precision=(-1,))))


def test_full_precision_of_a_bf16_engine_is_refused() -> None:
    with pytest.raises(InvalidInput, match="leave full_precision out"):
        Engine(full_precision=(-1,))


def test_card_too_small_for_both_precisions_is_refused() -> None:
    from dataclasses import replace

    from kontext_fast.optimizations.presets import require_memory, resolve
    from kontext_fast.pipeline.device import Machine

    gpu = replace(Machine.detect("cpu"), device="cuda", gpu="L40S", capability=(8, 9), memory_bytes=48 * 2**30)
    both, fp8 = (resolve([engine], Machine.detect("cpu")) for engine in (
        Engine(precision="fp8", full_precision=(-1,)), Engine(precision="fp8")
    ))  # fmt: skip
    require_memory(fp8, gpu)
    with pytest.raises(Refused, match="needs 54 GiB of GPU memory"):
        require_memory(both, gpu)


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_originals_on_the_device_change_no_bit(pipe: Any, precision: Any) -> None:
    np.testing.assert_array_equal(run(pipe, Engine(originals="device")), run(pipe, Engine()))  # bf16 replaces none
    in_host_memory = run(pipe, Engine(precision=precision))
    before = {name: weight.clone() for name, weight in pipe.transformer.state_dict().items()}
    untouched = render(pipe)
    with accelerate(pipe, [Engine(precision=precision, originals="device")], quiet=True) as acceleration:
        np.testing.assert_array_equal(render(pipe), in_host_memory)
        assert acceleration.facts["engine"]["host_bytes"] == 0
        assert acceleration.facts["engine"]["mlp_scales"] == {"fp8": "static", "int8": "rows"}[precision]
        weight = pipe.transformer.transformer_blocks[0].ff.net[2].weight
        weight.data *= 1.5
        with pytest.raises(InvalidInput, match="changed after they were quantized"):
            render(pipe)
        weight.data /= 1.5
    assert all(torch.equal(weight, before[name]) for name, weight in pipe.transformer.state_dict().items())
    np.testing.assert_array_equal(render(pipe), untouched)


def test_originals_are_named_where_they_are_not_by_default() -> None:
    assert "originals" not in Engine(precision="fp8").parameters()
    assert Engine(precision="fp8", originals="device").parameters()["originals"] == "device"
