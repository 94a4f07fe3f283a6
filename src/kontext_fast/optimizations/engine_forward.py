"""The engine as the forward of a transformer: what it keeps of a running call, and what it runs at each step."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.call_tracking import CallTracker, PipelineCall
from kontext_fast.optimizations.patching import set_attribute

if TYPE_CHECKING:
    from torch import Tensor

    from kontext_fast.engine.pass_parallel import PassParallel
    from kontext_fast.engine.ranks import Ranks
    from kontext_fast.engine.step_reuse import Schedule
    from kontext_fast.engine.transformer import Branch, EngineTransformer
    from kontext_fast.optimizations.replaced_modules import ReplacedModules
    from kontext_fast.optimizations.shared_encoding import SharedEncoding

MEMORY, PASSES = "engine", "passes"
"""Of a call, what the engine keeps of it: its branches by index, and what shares them with another process."""

ScheduleOf = Callable[[Any, Sequence[float]], "Schedule"]
"""Which steps of a request are computed, given its scheduler and its sigmas, as many as steps and a last one."""


@dataclass
class RunningBranch:
    """One branch of a running request."""

    branch: Branch
    batch: int
    timesteps: Tensor
    """[steps] as the scheduler announced them, in the units of the transformer."""
    actual: dict[int, Tensor] = field(default_factory=dict)
    """[B] by step, as the transformer got them. Read after the call: reading them earlier would stall."""

    sampled: Tensor | None = None
    """Of its inputs in all processes, where several run this call. Compared after it, too."""
    _differs: tuple[int, Tensor] | None = None
    """[] whether any step was at another timestep than the scheduler announced; of how many steps."""

    def compare_times(self) -> Tensor:
        """[] whether any step so far was at another timestep than the scheduler announced."""
        import torch

        if self._differs is None or self._differs[0] != len(self.actual):
            steps = list(self.actual)
            actual = torch.stack([self.actual[step].expand(self.batch) for step in steps])
            # Steps from the first on, as they should be, need no indices on the device, for which the host would wait.
            announced = self.timesteps[: len(steps)] if steps == [*range(len(steps))] else self.timesteps[steps]
            self._differs = len(steps), (actual != announced[:, None]).any()
        return self._differs[1]


class EngineForward:
    """The forward of one transformer: the function of a bound method, which a copy of the transformer binds anew."""

    def __init__(
        self,
        transformer: Any,
        engine: EngineTransformer,
        calls: CallTracker,
        replaced: ReplacedModules,
        full_precision_steps: Callable[[int], frozenset[int]],
        ranks: Ranks | None,
    ) -> None:
        functools.update_wrapper(self, type(transformer).forward)
        self._replaced = replaced
        self.engine = engine
        self._owner = weakref.ref(transformer)
        self._calls = calls
        self.ranks = ranks
        """The processes that run every call together; None: this one alone."""
        self.full_precision_steps = full_precision_steps
        """Which steps, of a number of them, are computed in full precision."""
        self.encoding: SharedEncoding | None = None
        """What these processes encoded for each other has to be exchanged before a step."""
        self.of_passes: EngineTransformer | None = None
        """Runs a pass alone, where each of these processes runs one of those of true CFG."""
        self._schedule: ScheduleOf | None = None
        self.before_first_step: Callable[[PipelineCall], None] = lambda _: None

    def follow(self, schedule: ScheduleOf, undo: ExitStack) -> None:
        """Compute the steps that `schedule` names for each request, until `undo` is closed."""
        set_attribute(self, "_schedule", schedule, undo)

    def __call__(self, transformer: Any, *args: Any, **kwargs: Any) -> Any:
        call = self._calls.current
        if transformer is not self._owner() or call is None:
            if self.engine.weights.sources.host_bytes:
                raise InvalidInput(
                    "This transformer runs in calls of accelerated pipelines only, since its original weights wait in "
                    "host memory; accelerate the pipeline that called it too, or revert the acceleration."
                )
            return type(transformer).forward(transformer, *args, **kwargs)
        return self._run(call, *args, **kwargs)

    def _run(
        self,
        call: PipelineCall,
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
        branches: dict[int, RunningBranch] = call.memory.setdefault(MEMORY, {})
        inputs = (pooled_projections, guidance, img_ids, txt_ids)
        index, step = call.begin_pass(*inputs), call.step
        if self.ranks is not None:
            if self.encoding is not None:
                self.encoding.exchange(call)
            sizes = *hidden_states.shape, *encoder_hidden_states.shape, call.total_steps
            self.ranks.agree(f"pass {index} of step {step} of {sizes}")
        first, passes = index not in branches, self._passes(call)
        if first:
            self.before_first_step(call)
        try:
            if first:
                engine = self.engine if passes is None or self.of_passes is None else self.of_passes
                branches[index] = self._begin(engine, call, hidden_states, *inputs)
            running = branches[index]
            running.actual[step] = timestep
            with nullcontext() if self.ranks is None else self.ranks.step():
                if self.ranks is not None and running.sampled is None:
                    running.sampled = self.ranks.sampled((hidden_states, encoder_hidden_states, pooled_projections))
                run = running.branch.step if passes is None else partial(passes.velocity, index, running.branch)
                velocity = run(step, hidden_states, encoder_hidden_states)
            if step + 1 == call.total_steps:
                running.compare_times()
        finally:
            if first:
                # After the step, which a GPU computes meanwhile, and where it failed, to say why.
                self.engine.weights.sources.verify(call.pipe.transformer)
                self._replaced.require_undisturbed(call.pipe.transformer)
        call.mark(*running.branch.kinds[-1:] * running.batch)
        if not return_dict:
            return (velocity,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=velocity)

    def _passes(self, call: PipelineCall) -> PassParallel | None:
        """What shares the passes of this call, where that has two and as many processes run it."""
        arguments = call.arguments
        negative = arguments.get("negative_prompt") is not None or (
            arguments.get("negative_prompt_embeds") is not None
            and arguments.get("negative_pooled_prompt_embeds") is not None
        )
        if self.ranks is None or self.of_passes is None or not negative or arguments.get("true_cfg_scale", 1.0) <= 1:
            return None
        from kontext_fast.engine.pass_parallel import PassParallel

        if PASSES not in call.memory:
            call.memory[PASSES] = PassParallel(self.ranks)
        passes: PassParallel = call.memory[PASSES]
        return passes

    def _begin(
        self,
        engine: EngineTransformer,
        call: PipelineCall,
        hidden: Tensor,
        pooled: Tensor,
        guidance: Tensor | None,
        img_ids: Tensor,
        txt_ids: Tensor,
    ) -> RunningBranch:
        from kontext_fast.engine.transformer import Branch

        # Pipelines with a strength leave out the first ones.
        scheduled = call.pipe.scheduler.timesteps[-call.total_steps :]
        # Rounded as the pipeline rounds them, so that they are the same numbers.
        timesteps = scheduled.to(hidden.device, hidden.dtype) / 1000
        exact = scheduled.to(hidden.device) / 1000
        image_ids, text_ids = (ids[0] if ids.ndim == 3 else ids for ids in (img_ids, txt_ids))
        prepared = engine.prepare(
            timesteps=exact if call.exact_times else timesteps,
            guidance=guidance,
            pooled=pooled,
            text_ids=text_ids,
            image_ids=image_ids,
            # Kontext numbers images by the first coordinate; 0 is the output.
            image_tokens=(image_ids[:, 0] == 0).sum(),
        )
        sigmas = [*(scheduled.float() / 1000).tolist(), 0.0]
        schedule = None if self._schedule is None else self._schedule(call.pipe.scheduler, sigmas)
        return RunningBranch(
            branch=Branch(engine, prepared, sigmas, schedule, self._full_precision(call, len(scheduled))),
            batch=len(hidden),
            timesteps=timesteps,
        )

    def _full_precision(self, call: PipelineCall, steps: int) -> frozenset[int]:
        """The steps of this call that are computed in full precision."""
        if call.place is None:
            return self.full_precision_steps(steps)
        step, of = call.place
        return frozenset(range(steps)) if step in self.full_precision_steps(of) else frozenset()


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


def _require_supported(attention_kwargs: dict[str, Any] | None, *controlnet: Any) -> None:
    unsupported = []
    if any(samples is not None for samples in controlnet):
        unsupported.append("ControlNet")
    # A LoRA scale scales adapters that are not fused, and there are none.
    if names := [name for name in attention_kwargs or {} if name != "scale"]:
        unsupported.append(f"attention arguments ({', '.join(names)}; IP-Adapter is one of them)")
    if unsupported:
        raise InvalidInput(f"The engine does not support {' and '.join(unsupported)}; leave one of the two out.")
