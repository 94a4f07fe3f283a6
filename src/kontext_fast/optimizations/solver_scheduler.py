"""The scheduler that stands in a pipeline during a call with a solver: it runs the solver's noise levels and rows.

Latents, coefficients and times stay in float32 here. What the pipeline gets back has the precision of the model, which
diffusers rounds latents to after every step and times before every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchEulerDiscreteSchedulerOutput,
)
from torch import Tensor

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.call_tracking import CallTracker, PipelineCall, track_calls
from kontext_fast.optimizations.patching import original_class, replace_method

_MEMORY = "solver"


class Run(Protocol):
    """One call's way from noise to a result."""

    @property
    def noise_levels(self) -> Sequence[float]:
        """Sigma of each evaluation, falling."""

    def advance(self, latents: Tensor, velocity: Tensor) -> Tensor:
        """The latents after an evaluation, in float32; see `engine.solver.SolverRun`."""


RunOf = Callable[[Sequence[float]], Run]
"""The run of a call, given the noise levels that its own steps would have, and 0 at the end."""


class SolverScheduler(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """Runs a solver during one call of a pipeline."""

    timesteps: Tensor
    sigmas: Tensor
    _calls: CallTracker
    _run_of: RunOf
    _original: Any

    @classmethod
    def in_place_of(cls, original: Any, run_of: RunOf, calls: CallTracker) -> SolverScheduler:
        """One with the settings of `original`. Raises InvalidInput for a scheduler that is no plain Euler method."""
        require_flow_matching(original)
        scheduler: SolverScheduler = cls.from_config(original.config)
        scheduler._original, scheduler._run_of, scheduler._calls = original, run_of, calls
        return scheduler

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        """As the scheduler before it, then with the levels of the solver instead."""
        super().set_timesteps(num_inference_steps, None, sigmas, mu, timesteps)
        if (call := self._calls.current) is not None:
            run = _CheckedRun(self._run_of(self.sigmas.tolist()))
            call.memory[_MEMORY] = run
            levels = torch.tensor(run.noise_levels, dtype=torch.float32)
            self.timesteps = levels * self.config.num_train_timesteps
            self.sigmas = torch.cat([levels, torch.zeros(1)])
            self.num_inference_steps = len(levels)
        self.timesteps, self.sigmas = self.timesteps.to(device), self.sigmas.to(device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Raises InvalidInput where a call does not begin with pure noise, as image-to-image does not."""
        if begin_index and self._calls.current is not None:
            raise InvalidInput(
                "A solver makes an image from pure noise, so a pipeline that begins later (a strength below 1) needs a "
                "preset without one."
            )
        super().set_begin_index(begin_index)

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any
    ) -> Any:
        """The latents after this evaluation, in the precision of `model_output`.

        Raises InvalidInput where someone else changed the latents of the step before.
        """
        call = self._calls.current
        run: _CheckedRun | None = None if call is None else call.memory.get(_MEMORY)
        if run is None:
            return super().step(model_output, timestep, sample, *args, return_dict=return_dict, **kwargs)
        latents = run.advance(sample, model_output)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=latents) if return_dict else (latents,)

    def save_config(self, *args: Any, **kwargs: Any) -> None:
        """Saves the scheduler before it: what a pipeline stores is what it is without the acceleration."""
        self._original.save_config(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Copies of the pipeline are not accelerated, so they get a copy of the scheduler that was there before.
        return self._original.__reduce_ex__(protocol)


class _CheckedRun:
    """A run that notices where the pipeline does not go on with what it was given."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.noise_levels = run.noise_levels
        self._given: Tensor | None = None

    def advance(self, latents: Tensor, velocity: Tensor) -> Tensor:
        if self._given is not None and latents is not self._given and not torch.equal(latents, self._given):
            raise InvalidInput(
                "Something changed the latents between two steps (a callback or inpainting), which a solver cannot "
                "follow; leave that out, or use a preset without a solver."
            )
        self._given = self._run.advance(latents, velocity).to(velocity.dtype)
        return self._given


def run_solver(pipe: Any, run_of: RunOf, undo: ExitStack) -> CallTracker:
    """Have every call of `pipe` follow the run that `run_of` gives, until `undo` is closed; gives its calls.

    Raises InvalidInput for a scheduler that is no plain FlowMatchEulerDiscreteScheduler; calls raise it too, and where
    someone else chooses the noise levels or the latents.
    """
    from kontext_fast.optimizations.techniques.engine import engine_of

    calls = track_calls(pipe, undo)
    require_flow_matching(pipe.scheduler)
    calls.replace_scheduler(lambda original: SolverScheduler.in_place_of(original, run_of, calls), undo)
    transformer = pipe.transformer

    def check(call: PipelineCall) -> None:
        if call.arguments.get("sigmas") is not None or call.arguments.get("timesteps") is not None:
            raise InvalidInput("A solver has noise levels of its own; leave out sigmas, or use a preset without one.")
        call.exact_times = True

    def embed_exactly(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The embedding of the time of the step. The engine embeds those of all steps at once, and exactly."""
        call = calls.current
        if call is None or not call.exact_times or engine_of(transformer) is not None:
            return original(*args, **kwargs)
        timestep, *others = args
        time = call.pipe.scheduler.timesteps[call.step].to(timestep.device, torch.float32)
        return original(time.expand(len(timestep)), *others, **kwargs)

    replace_method(transformer.time_text_embed, "forward", embed_exactly, undo)
    calls.on_begin(check, undo)
    return calls


def require_flow_matching(scheduler: Any) -> None:
    """Raise InvalidInput where a step does not add its velocity times the change of sigma, all the way to zero."""
    euler = original_class(type(scheduler)).step is FlowMatchEulerDiscreteScheduler.step
    if not euler or scheduler.config.stochastic_sampling or scheduler.config.invert_sigmas:
        raise InvalidInput(
            f"A solver takes the place of a plain FlowMatchEulerDiscreteScheduler, not of this "
            f"{type(scheduler).__name__}; put one into the pipeline first, or use a preset without a solver."
        )
