"""What stands in a pipeline during a call with a solver: its levels, precision, and what it leaves to the scheduler."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.solver_scheduler import SolverScheduler, require_flow_matching, run_solver

LEVELS = (1.0, 0.70001, 0.3)
OTHER_SCHEDULER = (
    "A solver takes the place of a plain FlowMatchEulerDiscreteScheduler, not of this {}; put one into the pipeline "
    "first, or use a preset without a solver."
)
OWN_LEVELS = "A solver has noise levels of its own; leave out sigmas, or use a preset without one."


class Halves:
    """A run of three evaluations, which are remembered."""

    noise_levels = LEVELS

    def __init__(self, sigmas: Sequence[float]) -> None:
        self.sigmas = sigmas
        self.evaluations: list[tuple[Tensor, Tensor]] = []

    def advance(self, latents: Tensor, velocity: Tensor) -> Tensor:
        self.evaluations.append((latents, velocity))
        return latents.float() / 2


class TimeEmbedding(torch.nn.Module):
    def forward(self, timestep: Tensor, guidance: float, *, pooled: str) -> tuple[Tensor, float, str]:
        return timestep, guidance, pooled


class Painter:
    """A pipeline in bfloat16, as far as its scheduler and the embedding of time are concerned."""

    def __init__(self, **config: Any) -> None:
        self.scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0, **config)
        self.transformer: Any = torch.nn.Module()
        self.transformer.time_text_embed = TimeEmbedding()
        self.begin = 0
        self.between: Callable[[Tensor], Tensor] = lambda latents: latents

    def __call__(
        self,
        steps: int = 5,
        sigmas: list[float] | None = None,
        timesteps: list[float] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor, list[Any]]:
        """The latents, and what the embedding was told at each step."""
        self.scheduler.set_timesteps(steps, device="cpu", sigmas=sigmas)
        self.scheduler.set_begin_index(self.begin)
        self.num_timesteps = len(self.scheduler.timesteps)
        latents, told = torch.ones(2, 4, dtype=torch.bfloat16), []
        for time in self.scheduler.timesteps:
            told.append(self.transformer.time_text_embed(time.expand(2).to(latents.dtype), 3.5, pooled="text"))
            moved = self.scheduler.step(latents * 3, time, latents, return_dict=return_dict)
            (latents,) = (moved.prev_sample,) if return_dict else moved
            latents = self.between(latents)
        return latents, told


@pytest.fixture
def pipe() -> Painter:
    return Painter()


@pytest.fixture
def runs(pipe: Painter) -> Iterator[list[Halves]]:
    """Those of the calls of `pipe`, which runs a solver."""
    made: list[Halves] = []
    with ExitStack() as undo:
        run_solver(pipe, lambda sigmas: made.append(Halves(sigmas)) or made[-1], undo)
        yield made


def sentence(refused: Callable[[], object]) -> str:
    with pytest.raises(InvalidInput) as caught:
        refused()
    return str(caught.value)


@pytest.mark.parametrize("return_dict", [False, True])
def test_each_evaluation_of_the_run_is_one_step(pipe: Painter, runs: list[Halves], return_dict: bool) -> None:
    latents, told = pipe(return_dict=return_dict)
    (run,) = runs
    assert len(told) == len(run.evaluations) == 3
    assert latents.dtype == torch.bfloat16
    assert latents[0, 0] == 1 / 8
    for step, (given, velocity) in enumerate(run.evaluations):
        assert (given[0, 0], velocity[0, 0]) == (2.0**-step, 3 * 2.0**-step)


def test_run_is_given_the_levels_of_the_steps_asked_for(pipe: Painter, runs: list[Halves]) -> None:
    pipe(steps=5)
    plain = FlowMatchEulerDiscreteScheduler(shift=3.0)
    plain.set_timesteps(5)
    assert runs[0].sigmas == plain.sigmas.tolist()
    assert runs[0].sigmas[-1] == 0


def test_run_is_given_the_levels_of_the_size_where_they_depend_on_it() -> None:
    pipe, given = Painter(use_dynamic_shifting=True), list[Sequence[float]]()
    plain = copy.deepcopy(pipe.scheduler)
    plain.set_timesteps(5, mu=1.2)
    with ExitStack() as undo:
        calls = run_solver(pipe, lambda sigmas: given.append(sigmas) or Halves(sigmas), undo)
        with calls.open(pipe):
            pipe.scheduler.set_timesteps(5, mu=1.2)
    assert given == [plain.sigmas.tolist()]


def test_scheduler_of_the_pipeline_is_told_nothing(pipe: Painter, runs: list[Halves]) -> None:
    own, before = pipe.scheduler, dict(vars(pipe.scheduler))
    pipe()
    assert pipe.scheduler is own
    assert vars(own).keys() == before.keys()
    assert own.timesteps is before["timesteps"]


def test_model_is_told_the_time_in_float32_and_the_rest_as_it_is(pipe: Painter, runs: list[Halves]) -> None:
    _, told = pipe()
    for level, (time, guidance, pooled) in zip(LEVELS, told, strict=True):
        assert time.dtype == torch.float32
        assert time.tolist() == pytest.approx([1000 * level] * 2, rel=1e-6)
        assert (guidance, pooled) == (3.5, "text")
    rounded = torch.tensor([700.01], dtype=torch.bfloat16)
    assert pipe.transformer.time_text_embed(rounded, 1.0, pooled="")[0] is rounded  # outside of a call


def test_calls_are_as_before_without_a_solver(pipe: Painter) -> None:
    expected, _ = pipe()
    with ExitStack() as undo:
        run_solver(pipe, Halves, undo)
        assert not torch.equal(pipe()[0], expected)
    latents, told = pipe()
    assert torch.equal(latents, expected)
    assert told[0][0].dtype == torch.bfloat16
    assert "forward" not in vars(pipe.transformer.time_text_embed)


def test_latents_may_be_copied_and_not_changed_between_steps(pipe: Painter, runs: list[Halves]) -> None:
    pipe.between = torch.clone
    assert pipe()[0][0, 0] == 1 / 8
    pipe.between = lambda latents: latents + 1
    assert sentence(pipe) == (
        "Something changed the latents between two steps (a callback or inpainting), which a solver cannot follow; "
        "leave that out, or use a preset without a solver."
    )


def test_levels_and_beginnings_of_others_are_refused(pipe: Painter, runs: list[Halves]) -> None:
    assert sentence(lambda: pipe(sigmas=[1.0, 0.5])) == OWN_LEVELS
    assert sentence(lambda: pipe(timesteps=[1.0])) == OWN_LEVELS
    pipe.begin = 1
    assert sentence(pipe) == (
        "A solver makes an image from pure noise, so a pipeline that begins later (a strength below 1) needs a preset "
        "without one."
    )


@pytest.mark.parametrize("config", [{"stochastic_sampling": True}, {"invert_sigmas": True}])
def test_scheduler_that_does_other_steps_is_refused(config: dict[str, Any]) -> None:
    with ExitStack() as undo:
        assert sentence(lambda: run_solver(Painter(**config), Halves, undo)) == OTHER_SCHEDULER.format(
            "FlowMatchEulerDiscreteScheduler"
        )
    assert sentence(lambda: require_flow_matching(UniPCMultistepScheduler())) == OTHER_SCHEDULER.format(
        "UniPCMultistepScheduler"
    )
    require_flow_matching(FlowMatchEulerDiscreteScheduler())


def test_scheduler_put_in_afterwards_is_asked_too(pipe: Painter, runs: list[Halves]) -> None:
    pipe.scheduler = UniPCMultistepScheduler()
    assert sentence(pipe) == OTHER_SCHEDULER.format("UniPCMultistepScheduler")


def test_outside_of_calls_it_is_the_scheduler_before_it(pipe: Painter, tmp_path: Path) -> None:
    with ExitStack() as undo:
        calls = run_solver(pipe, Halves, undo)
        ours = SolverScheduler.in_place_of(pipe.scheduler, Halves, calls)
        plain = copy.deepcopy(pipe.scheduler)
        assert dict(ours.config) == dict(plain.config)
        for scheduler in (ours, plain):
            scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.2], device="cpu", mu=1.0)
            scheduler.set_begin_index(1)
        assert torch.equal(ours.sigmas, plain.sigmas)
        assert torch.equal(ours.timesteps, plain.timesteps)
        assert ours.begin_index == plain.begin_index == 1
        sample, velocity = torch.ones(1, 2), torch.full((1, 2), 2.0)
        time = plain.timesteps[1]
        expected = plain.step(velocity, time, sample).prev_sample
        assert torch.equal(ours.step(velocity, time, sample).prev_sample, expected)
        ours.set_begin_index(1)
        ours._step_index = None
        (moved,) = ours.step(velocity, time, sample, return_dict=False)
        assert torch.equal(moved, expected)
        ours.set_timesteps(timesteps=[900.0, 400.0], sigmas=[0.9, 0.4])
        assert ours.timesteps.tolist() == [900.0, 400.0]
        ours.set_timesteps(4, device="meta")
        assert ours.timesteps.device == ours.sigmas.device == torch.device("meta")
        assert type(copy.deepcopy(ours)) is FlowMatchEulerDiscreteScheduler
        ours.save_config(tmp_path)
    stored = FlowMatchEulerDiscreteScheduler.load_config(tmp_path)
    assert stored["_class_name"] == "FlowMatchEulerDiscreteScheduler"
    assert stored["shift"] == 3.0


def test_levels_are_float32_with_zero_at_the_end_on_the_device_of_the_call(pipe: Painter) -> None:
    with ExitStack() as undo:
        calls = run_solver(pipe, Halves, undo)
        with calls.open(pipe):
            scheduler: Any = pipe.scheduler
            scheduler.set_timesteps(5)
            assert (scheduler.sigmas.dtype, scheduler.timesteps.dtype) == (torch.float32, torch.float32)
            assert scheduler.sigmas.tolist() == pytest.approx([*LEVELS, 0.0])
            assert scheduler.timesteps.tolist() == pytest.approx([1000 * level for level in LEVELS])
            assert scheduler.num_inference_steps == 3
            scheduler.set_begin_index(0)
            scheduler.set_timesteps(5, device="meta")
            assert scheduler.timesteps.device == scheduler.sigmas.device == torch.device("meta")
