"""What a user meets: one line on, one line off, and errors that change nothing."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from threading import Barrier
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import kontext_fast
from kontext_fast.errors import InvalidInput, Refused
from kontext_fast.optimizations.acceleration import accelerate, current
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.presets import PRESETS
from kontext_fast.optimizations.registry import discover
from kontext_fast.optimizations.techniques.first_block_cache import FirstBlockCache
from kontext_fast.optimizations.techniques.fuse_qkv import FuseQKV
from kontext_fast.optimizations.techniques.fused_vae import ChannelsLast
from kontext_fast.pipeline.device import Machine
from kontext_fast.pipeline.load import load
from tests import needs
from tests.pipelines import picture, render, small_pipeline


class FailsAfterTheOthers(Optimization):
    """Not in the package, so not discovered."""

    name: ClassVar[str] = "fails"
    summary: ClassVar[str] = "always fails"
    effect: ClassVar[Effect] = Effect.EXACT
    phase: ClassVar[Phase] = Phase.COMPILE

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        pipe.left_behind = True
        undo.callback(delattr, pipe, "left_behind")
        raise RuntimeError("half way")


@pytest.fixture
def pipe() -> Any:
    return small_pipeline()


def test_describe_has_one_line_per_optimization(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with accelerate(pipe, [FirstBlockCache(threshold=0.23456), FuseQKV()]) as acceleration:
        printed = capsys.readouterr().out
        assert printed.strip() == acceleration.describe()
        assert printed == (
            "first_block_cache+fuse_qkv: 2 optimizations, revert() takes them off\n"
            "  fuse_qkv (numeric): projections=3\n"
            "  first_block_cache (lossy): threshold=0.235, warmup_steps=2\n"
        )
        assert repr(acceleration) == (
            "<Acceleration first_block_cache+fuse_qkv: fuse_qkv, first_block_cache; revert() takes it off>"
        )
        assert acceleration._repr_html_() == f"<pre>{printed.strip()}</pre>"
    plain = accelerate(pipe, "baseline", quiet=True)
    assert capsys.readouterr().out == ""
    assert plain.describe() == "baseline: nothing changed"
    assert repr(plain) == "<Acceleration baseline: nothing changed; revert() takes it off>"


def sentence(refused: Callable[[], object]) -> str:
    with pytest.raises(InvalidInput) as caught:
        refused()
    return str(caught.value)


def test_refusals_name_what_to_do(pipe: Any) -> None:
    other = copy.copy(pipe)
    with accelerate(pipe, "fuse_qkv", quiet=True) as first:
        assert sentence(lambda: accelerate(pipe, "channels_last", quiet=True)) == (
            "This pipeline is accelerated already (fuse_qkv); call revert() on that one first."
        )
        assert sentence(lambda: accelerate(other, "channels_last", quiet=True)) == (
            "The transformer of this pipeline is accelerated already, by another pipeline (fuse_qkv on cpu); choose "
            "the same, or call revert() on that one first."
        )
        with accelerate(other, "fuse_qkv", device="cpu", quiet=True) as second:
            assert current(other) is second is not first
        own, pipe.transformer = pipe.transformer, small_pipeline().transformer
        assert sentence(lambda: render(pipe)) == (
            "The transformer of this pipeline was replaced after accelerate; revert first, replace it, then "
            "accelerate again."
        )
        pipe.transformer = own
    assert sentence(lambda: first.set_adapters("style")) == (
        "This acceleration was reverted; call pipe.set_adapters, then accelerate again."
    )
    assert sentence(lambda: accelerate(pipe, [FuseQKV()], quiet=True, computed=5)) == (
        "Parameters change a preset; set those of a list on its optimizations."
    )
    assert sentence(lambda: accelerate({}, quiet=True)) == (
        "Pass one of FluxKontextPipeline, FluxKontextInpaintPipeline, FluxPipeline, FluxImg2ImgPipeline, "
        "FluxInpaintPipeline, FluxFillPipeline to accelerate, not a dict."
    )
    pipe.transformer = torch.compile(own)
    assert sentence(lambda: accelerate(pipe, quiet=True)) == (
        "The pipeline's transformer is a OptimizedModule, not a plain FluxTransformer2DModel; load the pipeline again "
        "without wrapping it."
    )


def test_second_acceleration_is_refused(pipe: Any) -> None:
    with accelerate(pipe, "fuse_qkv", quiet=True) as first:
        with pytest.raises(InvalidInput, match="revert"):
            accelerate(pipe, "channels_last", quiet=True)
        assert current(pipe) is first
    with accelerate(pipe, "channels_last", quiet=True) as second:
        assert current(pipe) is second


def test_failing_apply_undoes_the_ones_before(pipe: Any) -> None:
    expected, original = render(pipe), type(pipe)
    with pytest.raises(RuntimeError, match="half way"):
        accelerate(pipe, [FuseQKV(), ChannelsLast(), FirstBlockCache(), FailsAfterTheOthers()], quiet=True)
    assert type(pipe) is original
    assert not hasattr(pipe, "left_behind")
    assert "forward" not in vars(pipe.transformer)
    np.testing.assert_array_equal(render(pipe), expected)


class MeetsItsLaunches(Optimization):
    """Applied only if two launches run at the same time as it."""

    name: ClassVar[str] = "meets"
    summary: ClassVar[str] = "waits for its launches"
    effect: ClassVar[Effect] = Effect.EXACT
    phase: ClassVar[Phase] = Phase.WEIGHTS
    together: ClassVar[Barrier]

    def precompile_calls(self, pipe: Any) -> Sequence[Callable[[], object]]:
        return [lambda: None, *[self.together.wait] * 2]

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        pipe.left_behind = True
        undo.callback(delattr, pipe, "left_behind")
        self.together.wait()
        return {}


def test_precompile_calls_run_while_applying(pipe: Any) -> None:
    MeetsItsLaunches.together = Barrier(3, timeout=20)
    with accelerate(pipe, [MeetsItsLaunches()], quiet=True):
        assert pipe.left_behind


def test_failing_precompile_call_undoes_everything(pipe: Any) -> None:
    def fail() -> None:
        raise RuntimeError("no compiler")

    class Fails(MeetsItsLaunches):
        def precompile_calls(self, pipe: Any) -> Sequence[Callable[[], object]]:
            return [fail]

    Fails.together = Barrier(1)
    with pytest.raises(RuntimeError, match="no compiler"):
        accelerate(pipe, [Fails()], quiet=True)
    assert not hasattr(pipe, "left_behind")
    assert current(pipe) is None


def test_refusal_changes_nothing(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert Machine.detect("cpu").cxx is None
    original = type(pipe)
    with pytest.raises(Refused, match="install g"):
        accelerate(pipe, "classic", quiet=True)
    assert type(pipe) is original


def test_step_kinds_are_those_of_the_last_request(pipe: Any) -> None:
    with accelerate(pipe, [FirstBlockCache(schedule=(0, 2))], quiet=True) as acceleration:
        assert acceleration.last_step_kinds() == []
        render(pipe, steps=4)
        assert acceleration.last_step_kinds() == ["full", "skipped", "full", "skipped"]
        render(pipe, steps=1)
        assert acceleration.last_step_kinds() == ["full"]


def test_edit_reports_the_step_kinds(pipe: Any) -> None:
    request = kontext_fast.EditRequest("make the background red", image=picture(), steps=3, size=(64, 64))
    with accelerate(pipe, [FirstBlockCache(schedule=(0,))], quiet=True):
        assert kontext_fast.edit(pipe, request).step_kinds == ("full", "skipped", "skipped")
    assert kontext_fast.edit(pipe, request).step_kinds == ("full",) * 3


def test_flux_pipeline_is_accelerated_too(pipe: Any) -> None:
    from diffusers import FluxPipeline

    text_to_image = FluxPipeline(**pipe.components)
    text_to_image.set_progress_bar_config(disable=True)

    def images() -> np.ndarray[Any, Any]:
        result: np.ndarray[Any, Any] = text_to_image(
            prompt="a red circle", height=64, width=64, num_inference_steps=3, max_sequence_length=48,
            generator=torch.Generator().manual_seed(0), output_type="np",
        ).images  # fmt: skip
        return result

    expected = images()
    with accelerate(text_to_image, [FirstBlockCache(threshold=1e9)], quiet=True) as acceleration:
        images()
        assert acceleration.last_step_kinds() == ["full", "full", "skipped"]
    np.testing.assert_array_equal(images(), expected)


@pytest.mark.parametrize(
    "preset", ["faithful", "fast", "low_memory", *(pytest.param(name, marks=pytest.mark.slow) for name in PRESETS)]
)
def test_accelerated_pipeline_is_freed(preset: str) -> None:
    """Every model and every weight, while the handle is kept; stock diffusers frees the same."""
    fitted = PRESETS[preset].fitted_to is not None
    pipe = load("tiny", device="cpu").pipe if fitted else small_pipeline()
    try:
        acceleration = accelerate(pipe, preset, quiet=True)
    except Refused:
        pytest.skip(needs.GPU)
    render(pipe, steps=2)
    models = [model for model in pipe.components.values() if isinstance(model, torch.nn.Module)]
    kept = [weakref.ref(thing) for model in models for thing in (model, *model.parameters())]
    del pipe, models
    gc.collect()  # frees the pipeline, and with it the reporter of its steps
    gc.collect()
    assert not [reference for reference in kept if reference() is not None]
    assert acceleration.last_step_kinds()


def test_public_names_load_on_first_use() -> None:
    assert kontext_fast.accelerate is accelerate
    for name in kontext_fast.__all__:
        assert getattr(kontext_fast, name)
        assert name in dir(kontext_fast)
    with pytest.raises(AttributeError, match="no attribute 'speed'"):
        _ = kontext_fast.speed


def test_optimizations_and_cost_load_from_the_top() -> None:
    """In a process of its own, since torch is imported here."""
    lines = (
        "import sys, time; start = time.process_time(); import kontext_fast",
        "took = time.process_time() - start; assert 'kontext_fast.optimizations' not in sys.modules and took < 1, took",
        "from kontext_fast import Engine, StepReuse, PRESETS",
        "assert [type(part) for part in PRESETS['turbo'].optimizations][:1] == [Engine] and StepReuse().name",
        "assert kontext_fast.cost.savings(2, 1, price=1, images_per_day=1).fraction == 0.5",
        "assert 'torch' not in sys.modules",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = {optimization.__name__ for optimization in discover().values()}
    assert {"Engine", "StepReuse"} <= names <= set(dir(kontext_fast))


def test_parameters_of_a_preset_are_changed_in_one_call() -> None:
    pipe = small_pipeline()
    with accelerate(pipe, "turbo", quiet=True, computed=5) as fast:
        assert [part.parameters().get("computed") for part in fast.plan.optimizations if part.name == "step_reuse"] == [
            5
        ]
        assert repr(fast).startswith("<Acceleration turbo(computed=5): engine, ")
    assert current(pipe) is None
