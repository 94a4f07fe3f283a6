"""What applying, sharing and reverting a plan keep to, by a technique that changes next to nothing."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import pytest
import torch
from diffusers import FluxPipeline
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field

from kontext_fast.errors import InvalidInput, Refused
from kontext_fast.optimizations import acceleration as module
from kontext_fast.optimizations.acceleration import accelerate, apply_plan, current, resolve_on
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.patching import set_attribute
from kontext_fast.optimizations.presets import Plan, faster_presets, find_preset
from kontext_fast.pipeline.device import Machine
from tests.optimizations.test_default_preset import gpu
from tests.pipelines import small_pipeline

ON_CPU = "The pipeline is on cpu; move it with pipe.to('meta'), or use the preset low_memory if it does not fit there."


class Marks(Optimization):
    """Leaves a mark on the transformer."""

    name: ClassVar[str] = "marks"
    summary: ClassVar[str] = "leaves a mark"
    effect: ClassVar[Effect] = Effect.EXACT
    phase: ClassVar[Phase] = Phase.REQUESTS
    applied: ClassVar[int] = 0
    compiled_for: ClassVar[list[Any]] = []

    number: float = 0.123456
    count: int | None = None
    words: list[str] = Field(default_factory=list)
    on: bool = False
    refused_on: str = ""

    def hardware_refusal(self, machine: Machine) -> str | None:
        return f"no {machine.device} please" if machine.device == self.refused_on else None

    def label(self, *, architecture_only: bool) -> str | None:
        return "<marked>"

    def precompile_calls(self, pipe: Any) -> Sequence[Callable[[], object]]:
        return [lambda: self.compiled_for.append(pipe)]

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        type(self).applied += 1
        set_attribute(pipe.transformer, "mark", "here", undo)
        return {"layers": self.applied, "seconds": 1.23456, "none": None, "empty": [], "off": False}


class Rewrites(Marks):
    name: ClassVar[str] = "rewrites"
    phase: ClassVar[Phase] = Phase.WEIGHTS


class Streams(Marks):
    name: ClassVar[str] = "streams"
    in_host_memory: ClassVar[bool] = True


@pytest.fixture(scope="module")
def shared() -> Any:
    return small_pipeline()


@pytest.fixture(autouse=True)
def _nothing_applied() -> None:
    Marks.applied = Rewrites.applied = Streams.applied = 0
    Marks.compiled_for.clear()


@pytest.fixture
def pipe(shared: Any) -> Any:
    """For tests that leave it as it was."""
    return shared


@pytest.fixture
def own() -> Any:
    """For tests that change it."""
    return small_pipeline()


def sentence(refused: Callable[[], object]) -> str:
    with pytest.raises(InvalidInput) as caught:
        refused()
    return str(caught.value)


def test_description_leaves_out_what_says_nothing(pipe: Any) -> None:
    with accelerate(pipe, [Marks()], quiet=True) as handle:
        assert handle.describe() == (
            "marks: 1 optimizations, revert() takes them off\n"
            "  marks (exact): number=0.123, refused_on=, layers=1, seconds=1.23\n"
            "  note: <marked>"
        )
        assert "note: &lt;marked&gt;</pre>" in handle._repr_html_()
        assert handle.facts["marks"]["layers"] == 1
        assert Marks.compiled_for == [pipe]
        assert current(pipe) is handle
    assert current(pipe) is None
    assert not hasattr(pipe.transformer, "mark")
    handle.revert()


def test_faster_presets_are_named_beside_the_default_one(
    pipe: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEFAULT_PRESET", "prompt_cache")
    for preset, others in (("prompt_cache", f"{faster_presets()}\n"), ("baseline", "")):
        with accelerate(pipe, preset) as handle:
            assert capsys.readouterr().out == f"{handle.describe()}\n{others}"


def test_parameters_change_a_preset_given_by_name_or_itself(pipe: Any) -> None:
    assert sentence(lambda: accelerate(pipe, [Marks()], quiet=True, number=5)) == (
        "Parameters change a preset; set those of a list on its optimizations."
    )
    for preset in ("first_block_cache", find_preset("first_block_cache")):
        with accelerate(pipe, preset, quiet=True, warmup_steps=7) as handle:
            assert handle.plan.optimizations[0].parameters()["warmup_steps"] == 7


def test_plan_is_refused_by_the_device_where_it_would_run(pipe: Any) -> None:
    for device, refused_on in ((None, "cpu"), ("cpu", "cpu"), ("meta", "meta")):
        with pytest.raises(Refused, match=f"no {refused_on} please"):
            accelerate(pipe, [Marks(refused_on=refused_on)], device=device, quiet=True)


def test_other_device_needs_a_plan_in_host_memory(pipe: Any) -> None:
    assert sentence(lambda: accelerate(pipe, [Marks()], device="meta", quiet=True)) == ON_CPU
    assert not hasattr(pipe.transformer, "mark")
    for device in ("cpu", torch.device("cpu")):
        accelerate(pipe, [Marks()], device=device, quiet=True).revert()
    with accelerate(pipe, [Streams()], device="meta", quiet=True):
        assert pipe._execution_device == torch.device("meta")
    assert pipe._execution_device == torch.device("cpu")


def test_model_of_full_size_must_fit_the_card(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    models = (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
    size = sum(parameter.nbytes for model in models for parameter in model.parameters())
    asked: list[Any] = []

    def detect(device: Any) -> Machine:
        asked.append(device)
        return gpu(24)

    monkeypatch.setattr(Machine, "detect", detect)
    monkeypatch.setattr(module, "FULL_SIZE_BYTES", size + 1)
    assert resolve_on(pipe, "faithful").preset == "faithful"
    monkeypatch.setattr(module, "FULL_SIZE_BYTES", size)
    with pytest.raises(Refused, match="needs 42 GiB"):
        resolve_on(pipe, "faithful", "cuda:1")
    assert asked == [torch.device("cpu"), "cuda:1"]


def test_what_is_no_pipeline_of_flux_is_refused_by_plans_too() -> None:
    refused = sentence(lambda: apply_plan(Plan("baseline", ()), {}))
    assert refused.startswith("Pass one of FluxKontextPipeline, ")
    assert refused.endswith(" to accelerate, not a dict.")


def test_wrapped_transformer_is_refused_and_a_second_acceleration_too(pipe: Any, own: Any) -> None:
    own.transformer = torch.nn.Sequential(own.transformer)
    wrapped = sentence(lambda: accelerate(own, [Marks()], quiet=True))
    assert wrapped.startswith("The pipeline's transformer is a Sequential, not a plain FluxTransformer2DModel; ")
    assert wrapped.endswith("; load the pipeline again without wrapping it.")
    with accelerate(pipe, [Marks()], quiet=True):
        assert sentence(lambda: accelerate(pipe, [Marks()], quiet=True)) == (
            "This pipeline is accelerated already (marks); call revert() on that one first."
        )


def test_second_pipeline_joins_with_the_same_plan_models_and_device(pipe: Any) -> None:
    with accelerate(pipe, [Marks()], quiet=True) as first:
        other = FluxPipeline(**pipe.components)
        assert sentence(lambda: accelerate(other, [Marks()], device="meta", quiet=True)) == (
            "The transformer of this pipeline is accelerated already, by another pipeline (marks on cpu); choose the "
            "same, or call revert() on that one first."
        )
        other.vae = copy.copy(pipe.vae)
        replaced = sentence(lambda: accelerate(other, [Marks()], quiet=True))
        assert replaced.startswith("The vae of this pipeline was replaced after accelerate; ")
        assert replaced.endswith(", then accelerate again.")
        other.vae = None
        second = accelerate(other, [Marks()], device="cpu", quiet=True)
        assert current(other) is second
        assert current(pipe) is first
        assert second.facts is first.facts
        assert Marks.applied == 1
        first.revert()
        assert (current(pipe), current(other)) == (None, second)
        assert pipe.transformer.mark == "here"
        second.revert()
    assert current(other) is None
    assert not hasattr(pipe.transformer, "mark")
    assert type(other) is FluxPipeline


def test_pipeline_without_a_part_is_accelerated(own: Any) -> None:
    own.text_encoder_2 = None
    with accelerate(own, [Marks()], quiet=True):
        assert own.transformer.mark == "here"
        assert not hasattr(copy.deepcopy(own.transformer), "mark")


def test_revert_after_the_pipeline_or_the_plan_is_gone_does_nothing(pipe: Any) -> None:
    other = FluxPipeline(**pipe.components)
    handle = accelerate(other, [Marks()], quiet=True)
    del other
    handle.revert()
    second = accelerate(pipe, [Marks()], quiet=True)
    for _ in range(2):
        second.revert()
        gc.collect()  # frees the plan
    assert handle.plan.preset == "marks"


def with_adapters(pipe: Any) -> Any:
    for name in ("style", "line"):
        pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"]), name)
    pipe.set_adapters("style")
    return pipe


def strengths(pipe: Any) -> dict[str, float]:
    layers = [layer for layer in pipe.transformer.modules() if isinstance(layer, BaseTunerLayer)]
    assert layers
    return dict(layers[0].scaling)


@pytest.mark.parametrize(
    ("names", "given", "of_each"),
    [
        ("line", None, {"line": 1.0}),
        (["line"], 0.5, {"line": 0.5}),
        (["style", "line"], 0.25, {"style": 0.25, "line": 0.25}),
        (["style", "line"], [0.25, 2.0], {"style": 0.25, "line": 2.0}),
    ],
)
@pytest.mark.parametrize("of_the_pipeline", [False, True])
def test_adapters_are_merged_anew_at_their_strengths(
    own: Any, names: Any, given: Any, of_each: dict[str, float], of_the_pipeline: bool
) -> None:
    with accelerate(with_adapters(own), [Rewrites()], quiet=True) as handle:
        assert handle.adapters == ("style",)
        assert "merged: style; acceleration.set_adapters(names, strengths) exchanges them" in handle.describe()
        (own if of_the_pipeline else handle).set_adapters(names, given)
        assert handle.adapters == tuple(of_each)
        assert handle.facts["rewrites"]["layers"] == Rewrites.applied == 2
        assert current(own) is handle
    assert current(own) is None
    assert {name: strengths(own)[name] for name in of_each} == of_each


def test_exchanged_adapters_serve_every_pipeline_of_the_plan(own: Any) -> None:
    first = accelerate(with_adapters(own), [Streams(), Rewrites()], device="meta", quiet=True)
    other = copy.copy(own)
    second = accelerate(other, [Streams(), Rewrites()], device="meta", quiet=True)
    second.set_adapters(["line"])
    assert first.adapters == second.adapters == ("line",)
    assert (current(own), current(other)) == (first, second)
    assert own._execution_device == other._execution_device == torch.device("meta")
    assert Rewrites.applied == 2
    second.revert()
    assert current(own) is first
    first.revert()
    assert not hasattr(own.transformer, "mark")


def test_strengths_that_diffusers_refuses_leave_the_plan_applied(own: Any) -> None:
    with accelerate(with_adapters(own), [Rewrites()], quiet=True) as handle:
        with pytest.raises(TypeError):
            handle.set_adapters("line", [object()])  # type: ignore[list-item]
        assert current(own) is handle
        assert own.transformer.mark == "here"
    assert not hasattr(own.transformer, "mark")


def test_adapters_stay_on_their_layers_where_no_weights_are_rewritten(own: Any) -> None:
    with accelerate(with_adapters(own), [Marks()], quiet=True) as handle:
        assert handle.adapters == ()
        own.set_adapters("line", 0.5)
        assert Marks.applied == 1
    assert strengths(own)["line"] == 0.5


def by_model(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def by_layer(pipe: Any) -> None:
    pipe.enable_sequential_cpu_offload(device="cpu")


def by_group(pipe: Any) -> None:
    pipe.text_encoder = None
    pipe.vae.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")


@pytest.mark.parametrize("device", [None, "meta"])
def test_offloaded_pipeline_runs_where_its_hooks_do_unless_another_place_is_named(own: Any, device: str | None) -> None:
    own.enable_model_cpu_offload(device="cpu")
    with accelerate(own, [Streams()], device=device, quiet=True):
        assert own._execution_device == torch.device(device or "cpu")
        assert not own._all_hooks
    assert own._all_hooks


@pytest.mark.parametrize(
    ("enable", "name", "modulations"),
    [
        (by_model, "enable_model_cpu_offload", "device"),
        (by_layer, "enable_sequential_cpu_offload", "host"),
        (by_group, "enable_group_offload", "host"),
    ],
)
def test_offload_takes_the_place_of_diffusers_own(
    own: Any, monkeypatch: pytest.MonkeyPatch, enable: Callable[[Any], None], name: str, modulations: str
) -> None:
    enable(own)
    plan = resolve_on(own, "balanced", "cpu")
    assert plan.preset == "balanced+offload"
    assert plan.labels[-1] == f"offload takes the place of {name} until revert()"
    assert len(set(plan.labels)) == len(plan.labels)
    by_name: dict[str, Any] = {part.name: part for part in plan.optimizations}
    assert by_name["engine"].precision == find_preset("balanced").optimizations[0].parameters()["precision"]
    assert by_name["engine"].modulations == modulations
    assert by_name["offload"].in_host_memory
    for preset in ("prompt_cache", "low_memory"):
        assert resolve_on(own, preset, "cpu").preset == preset
    # What moves weights of encoders by itself cannot be beside it.
    monkeypatch.setattr(Machine, "detect", lambda _: gpu(80))
    assert "text_graphs" in {part.name for part in find_preset("balanced").on_cuda}
    assert "text_graphs" not in {part.name for part in resolve_on(own, "balanced").optimizations}
