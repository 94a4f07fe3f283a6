"""Puts the engine behind one pipeline: it is the forward of that transformer while a request runs.

Between requests, and for a copy of the transformer, the forward is the original.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from types import MethodType
from typing import TYPE_CHECKING, Any

from kontext_fast.errors import InvalidInput, KontextError
from kontext_fast.optimizations.call_tracking import CallTracker, PipelineCall
from kontext_fast.optimizations.patching import set_attribute

if TYPE_CHECKING:
    from torch import Tensor

    from kontext_fast.engine.step_reuse import Branch, Schedule
    from kontext_fast.engine.transformer import EngineTransformer

_MEMORY = "engine"


@dataclass
class _RunningBranch:
    """One branch of a running request, with the inputs that must stay the same over its steps."""

    branch: Branch
    batch: int
    inputs: tuple[Any, ...]
    timesteps: Tensor
    """[steps] as the transformer is given them by the schedule."""
    given: dict[int, Tensor] = field(default_factory=dict)
    """[B] by step, what it was really given. Compared when the request has ended: reading them earlier would stall."""

    def is_astray(self) -> bool:
        """Whether any step was at another timestep than the scheduler announced."""
        import torch

        steps = list(self.given)
        given = torch.stack([self.given[step].expand(self.batch) for step in steps])
        return bool((given != self.timesteps[steps, None]).any())


class EngineForward:
    """What `forward` of one transformer is, as the function of a bound method."""

    def __init__(self, transformer: Any, engine: EngineTransformer, requests: CallTracker) -> None:
        functools.update_wrapper(self, type(transformer).forward)
        self.engine = engine
        self._owner = weakref.ref(transformer)
        self._requests = requests
        self._schedule: Callable[[int], Schedule] | None = None

    def follow(self, schedule: Callable[[int], Schedule], undo: ExitStack) -> None:
        """Compute the steps that `schedule` names for a request of so many steps, until `undo` is closed."""
        set_attribute(self, "_schedule", schedule, undo)

    def __call__(self, transformer: Any, *args: Any, **kwargs: Any) -> Any:
        request = self._requests.current
        if transformer is not self._owner() or request is None:
            if self.engine.weights.sources.host_bytes:
                raise InvalidInput(
                    "This transformer runs inside of pipe(...) only, since its original weights wait in host memory; "
                    "revert the acceleration to call it directly."
                )
            return type(transformer).forward(transformer, *args, **kwargs)
        return self._run(request, *args, **kwargs)

    def _run(
        self,
        request: PipelineCall,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        pooled_projections: Any = None,
        timestep: Any = None,
        img_ids: Any = None,
        txt_ids: Any = None,
        guidance: Tensor | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        controlnet_block_samples: Any = None,
        controlnet_single_block_samples: Any = None,
        return_dict: bool = True,
        controlnet_blocks_repeat: bool = False,
    ) -> Any:
        """The transformer's forward; the output has the image tokens only, which is all that a pipeline reads."""
        _require_supported(joint_attention_kwargs, controlnet_block_samples, controlnet_single_block_samples)
        branches: dict[int, _RunningBranch] = request.memory.setdefault(_MEMORY, {})
        index, step = request.begin_pass(), request.step
        inputs = (pooled_projections, guidance, img_ids, txt_ids)
        if index not in branches:
            # Here and not when the request begins: a GPU has text and image to encode meanwhile.
            self.engine.weights.sources.check(request.pipe.transformer)
            branches[index] = self._begin(request, hidden_states, *inputs)
        running = branches[index]
        if any(now is not before for now, before in zip(inputs, running.inputs, strict=True)):
            raise InvalidInput("The engine needs the same prompt and positions at every step of a request; keep them.")
        running.given[step] = timestep
        velocity = running.branch.step(step, hidden_states, encoder_hidden_states)
        request.mark(*running.branch.kinds[-1:] * running.batch)
        if not return_dict:
            return (velocity,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=velocity)

    def _begin(
        self,
        request: PipelineCall,
        hidden: Tensor,
        pooled: Tensor,
        guidance: Tensor | None,
        img_ids: Tensor,
        txt_ids: Tensor,
    ) -> _RunningBranch:
        from kontext_fast.engine.step_reuse import Branch

        scheduled = request.pipe.scheduler.timesteps
        # Rounded as the pipeline rounds them, so that they are the same numbers.
        timesteps = scheduled.to(hidden.device, hidden.dtype) / 1000
        image_ids, text_ids = (ids[0] if ids.ndim == 3 else ids for ids in (img_ids, txt_ids))
        prepared = self.engine.prepare(
            timesteps=timesteps,
            guidance=guidance,
            pooled=pooled,
            text_ids=text_ids,
            image_ids=image_ids,
            # Kontext numbers images by the first coordinate: 0 is the one being made.
            image_tokens=int((image_ids[:, 0] == 0).sum()),
        )
        sigmas = [*(scheduled.float() / 1000).tolist(), 0.0]
        schedule = None if self._schedule is None else self._schedule(len(scheduled))
        if schedule is not None and schedule.corrects:
            _require_euler(request.pipe.scheduler, sigmas)
        return _RunningBranch(
            branch=Branch(self.engine, prepared, sigmas, schedule),
            batch=len(hidden),
            inputs=(pooled, guidance, img_ids, txt_ids),
            timesteps=timesteps,
        )


def engine_of(transformer: Any) -> EngineForward | None:
    """The engine that `transformer` runs on, or None."""
    forward = getattr(vars(transformer).get("forward"), "__func__", None)
    return forward if isinstance(forward, EngineForward) else None


def require_engine(transformer: Any, name: str) -> EngineForward:
    """The engine that `transformer` runs on. Raises InvalidInput, naming the optimization, if there is none."""
    engine = engine_of(transformer)
    if engine is None:
        raise InvalidInput(f"{name} needs the engine; apply the preset {name}, which has both.")
    return engine


def install(transformer: Any, engine: EngineTransformer, requests: CallTracker, undo: ExitStack) -> EngineForward:
    """Make `engine` the forward of `transformer` while one of `requests` runs, until `undo` is closed."""
    forward = EngineForward(transformer, engine, requests)
    bound = MethodType(forward, transformer)

    def restore() -> None:
        if vars(transformer).get("forward") is not bound:
            raise KontextError("The transformer's forward was replaced after accelerate; load the checkpoint again.")
        del transformer.forward

    transformer.forward = bound
    undo.callback(restore)
    # What looks for fused projections (merging a LoRA does) would change weights that are no longer read.
    set_attribute(transformer, "fused_projections", True, undo)

    def check(request: PipelineCall) -> None:
        if vars(transformer).get("forward") is not bound:
            raise InvalidInput(
                "Something replaced the transformer's forward after accelerate (offloading does); take it off again."
            )

    def on_time(request: PipelineCall) -> None:
        branches: dict[int, _RunningBranch] = request.memory.get(_MEMORY, {})
        if any(running.is_astray() for running in branches.values()):
            raise KontextError(
                "The pipeline ran at other timesteps than its scheduler announced, so the image is wrong; "
                "use a preset without the engine."
            )

    requests.on_begin(check, undo)
    requests.on_completed(on_time, undo)
    return forward


def _require_euler(scheduler: Any, sigmas: Sequence[float]) -> None:
    """Raises InvalidInput where a step does not add its velocity times the change of sigma, all the way to zero."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    euler = type(scheduler).step is FlowMatchEulerDiscreteScheduler.step
    if not euler or scheduler.config.stochastic_sampling or scheduler.config.invert_sigmas:
        raise InvalidInput(
            f"step_reuse corrects its guesses for Euler's method only, not for this {type(scheduler).__name__}; "
            "use a plain FlowMatchEulerDiscreteScheduler, or StepReuse(corrector=False)."
        )
    if any(after >= before for before, after in pairwise(sigmas)):
        raise InvalidInput(
            "step_reuse corrects its guesses only where the noise falls at every step; keep sigmas apart."
        )


def _require_supported(attention_kwargs: dict[str, Any] | None, *controlnet: Any) -> None:
    unsupported = []
    if any(samples is not None for samples in controlnet):
        unsupported.append("ControlNet")
    # A LoRA scale scales adapters that are not fused, and there are none.
    if names := [name for name in attention_kwargs or {} if name != "scale"]:
        unsupported.append(f"attention arguments ({', '.join(names)}; IP-Adapter is one of them)")
    if unsupported:
        raise InvalidInput(f"The engine does not support {' and '.join(unsupported)}; leave one of the two out.")
