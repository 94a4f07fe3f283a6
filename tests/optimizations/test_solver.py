"""The optimization `solver`: how many steps run, in which precision, what it refuses, and what it says of a call."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from kontext_fast.engine.solver import Solver, adams_bashforth
from kontext_fast.errors import Caution, InvalidInput
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.call_tracking import tracker_of
from kontext_fast.optimizations.fitted_for import FittedFor
from kontext_fast.optimizations.presets import resolve
from kontext_fast.optimizations.techniques.compile import Compile
from kontext_fast.optimizations.techniques.engine import Engine
from kontext_fast.optimizations.techniques.first_block_cache import FirstBlockCache
from kontext_fast.optimizations.techniques.solver import FittedSolver
from kontext_fast.optimizations.techniques.step_reuse import StepReuse
from kontext_fast.optimizations.weight_identity import identity_of
from kontext_fast.pipeline.device import Machine
from kontext_fast.pipeline.edit import EditRequest, edit
from tests.pipelines import SIDE, picture, render, small_pipeline

RULE = adams_bashforth([1.0, 0.8, 0.5, 0.2, 0.0], 2)
"""Four evaluations."""
PATHS: list[list[Optimization]] = [[], [Engine()]]
"""Without the engine and with it."""

CHANGED = re.escape(
    "Something changed the latents between two steps (a callback or inpainting), which a solver cannot follow; leave "
    "that out, or use a preset without a solver."
)
OWN_LEVELS = r"^A solver has noise levels of its own; leave out sigmas, or use a preset without one\.$"
NOT_PLAIN = (
    r"^A solver takes the place of a plain FlowMatchEulerDiscreteScheduler, not of this \w+Scheduler; put one into the "
    r"pipeline first, or use a preset without a solver\.$"
)


@pytest.fixture(scope="module")
def shared() -> Any:
    return small_pipeline()


def fitted_for(pipe: Any, **others: Any) -> FittedFor:
    usual: dict[str, Any] = {
        "checkpoint": "small", "weights": identity_of(pipe.transformer), "target": "steps", "steps": 8,
        "guidance": (3.5, 3.5), "sizes": (f"{SIDE}x{SIDE}",),
    }  # fmt: skip
    return FittedFor(**{**usual, **others})


def latents_of(pipe: Any, **changes: Any) -> Any:
    call = {"image": picture(), "prompt": "make the background red", "height": SIDE, "width": SIDE}
    call |= {"max_area": SIDE * SIDE, "_auto_resize": False, "num_inference_steps": 8, "max_sequence_length": 48}
    call |= {"generator": torch.Generator().manual_seed(1), "output_type": "latent", **changes}
    return pipe(**call).images


@pytest.mark.parametrize("others", PATHS, ids=["diffusers", "engine"])
def test_as_many_steps_run_as_the_rule_has(shared: Any, others: list[Optimization]) -> None:
    seen: list[int] = []
    calls: list[float] = []
    with accelerate(shared, [*others, FittedSolver(fitted=RULE)], quiet=True) as acceleration:
        embed = shared.transformer.time_text_embed.register_forward_pre_hook(
            lambda _, inputs: calls.extend(inputs[0].flatten().tolist())
        )
        render(shared, steps=8, on_step=seen.append)
        embed.remove()
        assert acceleration.last_step_kinds() == ["full"] * 4
        assert shared.num_timesteps == 4
    assert seen == [0, 1, 2, 3]
    assert len(calls) == 4
    assert type(shared.scheduler) is FlowMatchEulerDiscreteScheduler


@pytest.mark.parametrize("others", PATHS, ids=["diffusers", "engine"])
def test_euler_as_a_rule_gives_what_diffusers_gives(shared: Any, others: list[Optimization]) -> None:
    untouched = render(shared)
    with accelerate(shared, [*others, FittedSolver(order=1)], quiet=True):
        np.testing.assert_allclose(render(shared), untouched, rtol=0, atol=1e-4)
        np.testing.assert_allclose(
            render(shared, negative="blurry", prompts=("a", "b"), seeds=(1, 2)), render_plain(), rtol=0, atol=1e-4
        )


def render_plain() -> Any:
    return render(small_pipeline(), negative="blurry", prompts=("a", "b"), seeds=(1, 2))


@pytest.mark.parametrize("others", PATHS, ids=["diffusers", "engine"])
def test_latents_stay_in_float32_where_the_model_does_not(others: list[Optimization]) -> None:
    """Of a dense path in bfloat16: a rule comes nearer to float32 than diffusers, which rounds after every step."""
    exact, steps = small_pipeline(), 200
    rounded = copy.deepcopy(exact).to(torch.bfloat16)
    noise = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(3)).bfloat16()

    def latents(pipe: Any, applied: list[Optimization]) -> Any:
        with accelerate(pipe, applied, quiet=True):
            given = latents_of(pipe, latents=noise.to(pipe.transformer.dtype), num_inference_steps=steps)
        assert given.dtype is pipe.transformer.dtype
        return given.float()

    truth = latents(exact, [])
    by_rule, by_diffusers = (
        float((latents(rounded, applied) - truth).norm() / truth.norm())
        for applied in ([*others, FittedSolver(order=1)], others)
    )
    assert by_rule < 0.6 * by_diffusers


@pytest.mark.parametrize("others", PATHS, ids=["diffusers", "engine"])
def test_the_model_is_told_the_exact_time(others: list[Optimization]) -> None:
    pipe = small_pipeline().to(torch.bfloat16)
    level = 0.987654
    rule = Solver(noise_levels=(level,), coefficients=((1.0, -level),))
    told: list[float] = []
    hook = pipe.transformer.time_text_embed.time_proj.register_forward_pre_hook(
        lambda _, inputs: told.append(float(inputs[0].flatten()[0]))
    )
    with accelerate(pipe, [*others, FittedSolver(fitted=rule)], quiet=True):
        latents_of(pipe)
    hook.remove()
    assert told[0] == pytest.approx(1000 * level, rel=1e-6)
    assert told[1] == 3504.0  # the guidance of 3.5 stays as diffusers rounds it


def test_latents_that_someone_else_changes_are_refused(shared: Any) -> None:
    def change(_pipe: Any, _step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] + 1}

    with accelerate(shared, [FittedSolver(fitted=RULE)], quiet=True):
        with pytest.raises(InvalidInput, match=CHANGED):
            latents_of(shared, callback_on_step_end=change)
        latents_of(shared, callback_on_step_end=lambda _p, _s, _t, tensors: {"latents": tensors["latents"].clone()})


def test_levels_that_someone_else_chooses_are_refused(shared: Any) -> None:
    with (
        accelerate(shared, [FittedSolver(fitted=RULE)], quiet=True),
        pytest.raises(InvalidInput, match=OWN_LEVELS),
    ):
        latents_of(shared, sigmas=[1.0, 0.5], num_inference_steps=2)


def test_times_of_ones_own_and_later_beginnings_are_refused(shared: Any) -> None:
    with accelerate(shared, [FittedSolver(fitted=RULE)], quiet=True):
        scheduler: list[Any] = []
        latents_of(shared, callback_on_step_end=lambda pipe, *_: scheduler.append(pipe.scheduler) or {})
        calls = tracker_of(shared)
        assert calls is not None
        with pytest.raises(InvalidInput, match=OWN_LEVELS), calls.open(shared, {"timesteps": [1]}):
            pass
        with calls.open(shared), pytest.raises(InvalidInput) as caught:
            scheduler[0].set_begin_index(1)
        with pytest.raises(InvalidInput) as refused, calls.open(shared, {"strength": 0.7}):
            pass
        with calls.open(shared, {"strength": 1.0}):
            pass
    assert str(refused.value) == (
        "A solver runs from noise alone, and a strength of 0.7 begins with an image; leave the strength at 1, or use a "
        "preset without a solver."
    )
    assert str(caught.value) == (
        "A solver makes an image from pure noise, so a pipeline that begins later (a strength below 1) needs a preset "
        "without one."
    )


def test_a_scheduler_put_in_afterwards_runs_the_rule_too() -> None:
    pipe = small_pipeline()
    with accelerate(pipe, [FittedSolver(fitted=RULE)], quiet=True) as acceleration:
        expected = latents_of(pipe)
        pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
        assert torch.equal(latents_of(pipe), expected)
        assert acceleration.last_step_kinds() == ["full"] * 4
        pipe.scheduler = UniPCMultistepScheduler()
        with pytest.raises(InvalidInput, match=NOT_PLAIN):
            latents_of(pipe)


def test_a_step_that_a_user_replaced_is_refused_until_taken_off() -> None:
    pipe = small_pipeline()
    with accelerate(pipe, [FittedSolver(fitted=RULE)], quiet=True):
        expected = latents_of(pipe)
        pipe.scheduler.step = lambda *args, **kwargs: pytest.fail("not this one")
        with pytest.raises(InvalidInput, match=r"del pipe\.scheduler\.step"):
            latents_of(pipe)
        del pipe.scheduler.step
        assert torch.equal(latents_of(pipe), expected)


@pytest.mark.parametrize(
    "scheduler", [UniPCMultistepScheduler(), FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)]
)
def test_a_scheduler_that_is_not_plain_is_refused(scheduler: Any) -> None:
    pipe = small_pipeline()
    pipe.scheduler = scheduler
    with pytest.raises(InvalidInput, match=NOT_PLAIN):
        accelerate(pipe, [FittedSolver()], quiet=True)
    assert pipe.scheduler is scheduler


def test_copies_and_saved_pipelines_have_the_former_scheduler(tmp_path: Any) -> None:
    pipe = small_pipeline()
    before = pipe.scheduler
    with accelerate(pipe, [FittedSolver(fitted=RULE)], quiet=True):
        assert type(copy.deepcopy(pipe).scheduler) is FlowMatchEulerDiscreteScheduler
        pipe.save_pretrained(tmp_path)
    assert pipe.scheduler is before
    stored = type(pipe).from_pretrained(tmp_path)
    assert type(stored.scheduler) is FlowMatchEulerDiscreteScheduler
    assert stored.scheduler.config.shift == before.config.shift


MACHINE = Machine.detect("cpu")


@pytest.mark.parametrize("other", [StepReuse(), FirstBlockCache(), Compile(mode="whole")], ids=lambda one: one.name)
def test_what_skips_by_itself_is_refused_beside_it(other: Optimization) -> None:
    chosen = [FittedSolver(), other] if other.name != "step_reuse" else [Engine(), FittedSolver(), other]
    with pytest.raises(InvalidInput, match="exclude each other"):
        resolve(chosen, MACHINE)


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [({"fitted": RULE, "order": 1}, "has no order"), ({"fitted_for": None, "order": 4}, "order")],
)
def test_parameters_that_contradict_each_other_are_named(parameters: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        FittedSolver(**parameters)


def test_other_weights_are_refused_and_another_lora_is_said() -> None:
    pipe, other = small_pipeline(), small_pipeline(double=2)
    rule = FittedSolver(fitted=RULE, fitted_for=fitted_for(pipe))
    with pytest.raises(InvalidInput, match="fitted to small, and these are other weights"):
        accelerate(other, [rule], quiet=True)
    # As merging a LoRA does.
    pipe.transformer.transformer_blocks[0].attn.to_q.weight.data += 1e-2
    with accelerate(pipe, [rule], quiet=True) as acceleration, pytest.warns(Caution, match="another LoRA or none"):
        latents_of(pipe)
    assert len(acceleration.facts["solver"]["cautions"]) == 1
    biased = small_pipeline()
    biased.transformer.proj_out.bias.data += 1e-2
    with pytest.raises(InvalidInput, match="other weights"):
        accelerate(biased, [rule], quiet=True)


@pytest.mark.parametrize(
    ("changes", "caution"),
    [
        ({}, None),
        ({"num_inference_steps": 20}, "stands for 8 steps, and 20 were asked for"),
        ({"image": None}, "fitted to edits and runs text-to-image"),
        ({"negative_prompt": "blurry", "true_cfg_scale": 2.0}, "without true CFG"),
        ({"height": 32, "max_area": SIDE * 32}, f"fitted at {SIDE}x{SIDE} and runs at {SIDE}x32"),
    ],
    ids=lambda value: None if not isinstance(value, dict) else "-".join(value) or "as fitted",
)
@pytest.mark.parametrize("others", PATHS, ids=["diffusers", "engine"])
def test_a_call_that_differs_from_the_fit_is_said(
    shared: Any, others: list[Optimization], changes: dict[str, Any], caution: str | None
) -> None:
    rule = FittedSolver(fitted=RULE, fitted_for=fitted_for(shared))
    with (
        accelerate(shared, [*others, rule], quiet=True) as acceleration,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        assert acceleration.facts["solver"] == {"cautions": []}
        latents_of(shared, **changes)
        said = acceleration.facts["solver"]["cautions"]
    assert [str(one.message) for one in caught if one.category is Caution] == said
    assert len(said) == (caution is not None)
    assert caution is None or caution in said[0]


def test_an_edit_tells_its_steps_and_cautions(shared: Any) -> None:
    progress: list[tuple[int, int]] = []
    rule = FittedSolver(fitted=RULE, fitted_for=fitted_for(shared, guidance=(2.5, 2.5), sizes=()))
    with accelerate(shared, [rule], quiet=True), pytest.warns(Caution):
        result = edit(
            shared,
            EditRequest("make it red", picture(), steps=28, seed=1, size=(SIDE, SIDE)),
            on_step=lambda done, total: progress.append((done, total)),
        )
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert result.step_kinds == ("full",) * 4
    assert len(result.cautions) == 1
    assert "28 were asked for" in result.cautions[0]
    assert edit(shared, EditRequest("make it red", picture(), steps=2, seed=1, size=(SIDE, SIDE))).cautions == ()


def test_solver_says_what_it_runs_and_was_fitted_to(shared: Any) -> None:
    fit = fitted_for(shared)
    plain, fitted = FittedSolver(order=3), FittedSolver(fitted=RULE, fitted_for=fit)
    assert plain.parameters() == plain.parameters_for_people() == {"order": 3}
    assert fitted.parameters() == {"fitted": RULE.model_dump(mode="json"), "fitted_for": fit.model_dump(mode="json")}
    assert fitted.parameters_for_people() == {"evaluations": 4, "fitted_to": "small"}
    assert fitted.on_random_weights() == FittedSolver(fitted=RULE)
    assert FittedSolver(fitted=RULE).parameters_for_people() == {"evaluations": 4, "fitted_to": None}
    stated = "solver: 4 evaluations, whatever number of steps is asked for"
    assert [fitted.label(architecture_only=random) for random in (False, True)] == [
        stated, f"{stated} (fitted to other weights than these random ones)",
    ]  # fmt: skip
    assert plain.label(architecture_only=True) is None


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"fitted": RULE, "order": 2}, "a fitted rule has no order; leave it out"),
        (
            {"fitted_for": {"checkpoint": "a", "weights": {"vectors": "a", "matrices": "b"}, "target": "steps",
                            "steps": 1, "guidance": (1, 1)}},
            "there is no rule that was fitted; give fitted, or leave fitted_for out",
        ),
    ],
)  # fmt: skip
def test_rule_and_fit_that_do_not_go_together_are_refused(parameters: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        FittedSolver(**parameters)
    assert str(caught.value) == f"Bad parameters for solver: {complaint}."


def test_calls_that_do_not_begin_with_noise_are_refused() -> None:
    solver = FittedSolver()
    with pytest.raises(InvalidInput) as caught:
        solver._solver([1.0, 0.5, 0.5, 0.0])
    assert str(caught.value) == "A solver needs noise that falls at every step; use a plain scheduler."
    assert solver._solver([1.0, 0.5, 0.0]) == adams_bashforth([1.0, 0.5, 0.0], 2)
