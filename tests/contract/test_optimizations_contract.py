"""Rules that every discovered optimization keeps: as it is by default, on random weights and in every preset.

What an optimization requires is applied with it.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from kontext_fast.errors import InvalidInput, Refused
from kontext_fast.optimizations.acceleration import accelerate, current
from kontext_fast.optimizations.base import Effect, Optimization
from kontext_fast.optimizations.presets import PRESETS, Preset, resolve, with_required
from kontext_fast.optimizations.registry import discover
from kontext_fast.pipeline.device import Machine
from tests.pipelines import render, small_pipeline

ROUNDING = 1e-3
"""Of a pixel in 0..1, after 4 steps in float32."""


def _variants() -> list[Optimization]:
    found: list[Optimization] = []
    for one in (technique() for technique in discover().values()):
        found += [one, one.on_random_weights()]
    # A preset that was fitted refuses other weights, those of these tests among them; its techniques are here anyway.
    for preset in (preset for preset in PRESETS.values() if preset.fitted_to is None):
        found += [*preset.parts, *(preset.on_random or ())]
    return list(dict.fromkeys(found))


def _name(one: Optimization) -> str:
    default = type(one)().parameters()
    changed = [f"{key}={value}" for key, value in one.parameters().items() if default.get(key) != value]
    return "-".join([one.name, *changed])


@pytest.fixture(params=_variants(), ids=_name)
def optimization(request: pytest.FixtureRequest) -> Optimization:
    one: Optimization = request.param
    if (reason := one.refusal(Machine.detect("cpu"))) is not None:
        pytest.skip(reason)
    return one


@pytest.fixture
def pipe(untouched: np.ndarray[Any, Any]) -> Any:
    """A pipeline that has been used before: diffusers sets some attributes in the first call."""
    pipe = small_pipeline()
    np.testing.assert_array_equal(render(pipe), untouched)
    return pipe


def _traces(pipe: Any) -> dict[str, Any]:
    """Everything an optimization could leave behind: attributes, hooks, and the weights down to their strides."""
    traces: dict[str, Any] = {}
    owners = {"pipe": pipe, "scheduler": pipe.scheduler}
    for part in ("transformer", "vae"):
        owners |= {f"{part}.{name}": module for name, module in getattr(pipe, part).named_modules()}
    for name, owner in owners.items():
        traces[name] = (type(owner), sorted(vars(owner)))
        if isinstance(owner, torch.nn.Module):
            tables = [key for key in vars(owner) if key.startswith("_") and isinstance(vars(owner)[key], dict)]
            traces[name] += ({key: list(vars(owner)[key]) for key in tables},)
            for key, weight in owner._parameters.items():
                if weight is not None:
                    memory = weight.untyped_storage().nbytes()
                    layout = (weight.shape, weight.stride(), weight.dtype, weight.requires_grad, memory)
                    traces[f"{name}.{key}"] = (id(weight), layout, weight.detach().numpy().tobytes())
    return traces


def test_revert_restores_the_pipeline(optimization: Optimization, pipe: Any, untouched: np.ndarray[Any, Any]) -> None:
    before = _traces(pipe)
    acceleration = accelerate(pipe, with_required(optimization), quiet=True)
    assert current(pipe) is acceleration
    render(pipe)
    acceleration.revert()
    acceleration.revert()
    assert current(pipe) is None
    assert _traces(pipe) == before
    np.testing.assert_array_equal(render(pipe), untouched)


COMBINED = [preset for preset in PRESETS.values() if len(preset.optimizations) > 1 and preset.fitted_to is None]


@pytest.mark.parametrize("preset", COMBINED, ids=lambda preset: preset.name)
def test_revert_of_a_combination_restores_all(preset: Preset, pipe: Any, untouched: np.ndarray[Any, Any]) -> None:
    before = _traces(pipe)
    try:
        acceleration = accelerate(pipe, preset, quiet=True)
    except Refused as refused:
        pytest.skip(str(refused))
    np.testing.assert_array_equal(render(pipe), render(pipe))
    acceleration.revert()
    assert _traces(pipe) == before
    np.testing.assert_array_equal(render(pipe), untouched)


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_interrupted_edit_leaves_nothing_behind(
    optimization: Optimization, pipe: Any, untouched: np.ndarray[Any, Any], interruption: type[BaseException]
) -> None:
    def interrupt(step: int) -> None:
        if step == 1:
            raise interruption("stop")

    before = _traces(pipe)
    with accelerate(pipe, with_required(optimization), quiet=True) as acceleration:
        whole = render(pipe)
        with pytest.raises(interruption, match="stop"):
            render(pipe, seeds=(2,), on_step=interrupt)
        assert len(acceleration.last_step_kinds()) == 2
        np.testing.assert_array_equal(render(pipe), whole)
        with pytest.raises(interruption, match="stop"):
            render(pipe, on_step=interrupt)
    assert _traces(pipe) == before
    np.testing.assert_array_equal(render(pipe), untouched)


def test_two_pipelines_are_independent(optimization: Optimization, pipe: Any, untouched: np.ndarray[Any, Any]) -> None:
    other, bystander = small_pipeline(), small_pipeline()
    inner: list[np.ndarray[Any, Any]] = []

    def edit_the_others(step: int) -> None:
        if step == 1:
            inner.extend((render(other, seeds=(2,)), render(bystander)))

    with (
        accelerate(pipe, with_required(optimization), quiet=True),
        accelerate(other, with_required(optimization), quiet=True) as second,
    ):
        alone, other_alone = render(pipe), render(other, seeds=(2,))
        interleaved = render(pipe, on_step=edit_the_others)
        np.testing.assert_array_equal(interleaved, alone)
        np.testing.assert_array_equal(inner[0], other_alone)
        np.testing.assert_array_equal(inner[1], untouched)
        second.revert()
        np.testing.assert_array_equal(render(pipe), alone)
        np.testing.assert_array_equal(render(other), untouched)


def test_declared_effect_holds(optimization: Optimization, pipe: Any, untouched: np.ndarray[Any, Any]) -> None:
    *required, _ = with_required(optimization)
    without = untouched
    if required:
        with accelerate(pipe, required, quiet=True):
            without = render(pipe)
    with accelerate(pipe, with_required(optimization), quiet=True) as acceleration:
        images = render(pipe)
        kinds = acceleration.last_step_kinds()
    assert len(kinds) == 4
    assert np.isfinite(images).all()
    if optimization.effect is Effect.LOSSY:
        assert set(kinds) == {"full"} or not np.array_equal(images, without)
        return
    assert kinds == ["full"] * 4
    if optimization.effect is Effect.NUMERIC:
        np.testing.assert_allclose(images, without, rtol=0, atol=ROUNDING)
    else:
        np.testing.assert_array_equal(images, without)


def test_requests_are_independent(optimization: Optimization, pipe: Any) -> None:
    different: dict[str, Any] = {"prompts": ("remove the circle",), "seeds": (7,), "steps": 3}
    fresh = small_pipeline()
    with (
        accelerate(pipe, with_required(optimization), quiet=True),
        accelerate(fresh, with_required(optimization), quiet=True),
    ):
        first = render(pipe)
        np.testing.assert_array_equal(render(pipe), first)
        np.testing.assert_array_equal(render(pipe, **different), render(fresh, **different))


def test_pipeline_keeps_its_class_for_others(optimization: Optimization, pipe: Any, tmp_path: Any) -> None:
    original, components = type(pipe), pipe.components.keys()
    saved_before = {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
    with accelerate(pipe, with_required(optimization), quiet=True):
        assert isinstance(pipe, original)
        assert (type(pipe).__name__, type(pipe).__module__) == (original.__name__, original.__module__)
        assert pipe.components.keys() == components
        pipe.save_pretrained(tmp_path)
        duplicate = copy.deepcopy(pipe)
        assert type(duplicate) is original
        assert current(duplicate) is None
    loaded = original.from_pretrained(tmp_path)
    restored = loaded.transformer.state_dict()
    assert restored.keys() == saved_before.keys()
    assert all(torch.equal(restored[key], saved_before[key]) for key in restored)


CANNOT = (
    Machine(device="cpu", memory_bytes=1, cxx=None, cc=None, triton=False, torch="2.13.0", platform="linux-x86_64"),
    Machine(
        device="cuda", gpu="old", capability=(5, 0), memory_bytes=1, cxx=None, cc=None, triton=False, torch="2.13.0",
        platform="linux-x86_64",
    ),
    Machine(device="mps", gpu="Apple", memory_bytes=1, cxx=None, cc=None, triton=False, torch="2.13.0", platform="x"),
)  # fmt: skip


@pytest.mark.parametrize("machine", CANNOT, ids=lambda machine: machine.device)
@pytest.mark.parametrize("name", discover())
def test_refusal_on_unfit_machines_changes_nothing(name: str, machine: Machine) -> None:
    chosen = with_required(discover()[name]())
    reasons = [reason for one in chosen if (reason := one.refusal(machine)) is not None]
    if not reasons:
        assert resolve(chosen, machine).optimizations == tuple(one.on_machine(machine) for one in chosen)
        return
    assert not any("\n" in reason or reason.endswith(".") for reason in reasons)
    with pytest.raises(Refused) as refused:
        resolve(chosen, machine)
    assert all(reason in str(refused.value) for reason in reasons)


REQUIRING = [name for name, found in discover().items() if found.requires]


@pytest.mark.parametrize("name", REQUIRING)
def test_required_optimization_is_checked_and_applied_first(name: str) -> None:
    one, machine = discover()[name](), Machine.detect("cpu")
    with pytest.raises(InvalidInput, match=f"{name} needs {' and '.join(sorted(one.requires))}"):
        resolve([one], machine)
    names = [chosen.name for chosen in resolve(with_required(one)[::-1], machine).optimizations]
    assert names.index(name) > max(names.index(required) for required in one.requires)
