"""`engine`: the transformer's forward replaced by our own, with fused operations, in bf16, fp8 or int8.

It reads the transformer's own weights. What is quantized waits in host memory while a GPU runs, and comes back from
there when the acceleration is taken off. It is the forward of one transformer while a request runs; between requests,
and for a copy of the transformer, the forward is the original.
"""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from kontext_fast.discovery import unknown_name
from kontext_fast.engine.dispatch import (
    AUTO,
    attention_kernels,
    fastest_attention,
    kernel_kind,
    make_ops,
    refusal,
    require_dtype,
    tokens_for_graphs,
)
from kontext_fast.errors import InvalidInput, KontextError
from kontext_fast.optimizations.base import Conflict, Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.call_tracking import CallTracker, PipelineCall, track_calls
from kontext_fast.optimizations.patching import (
    defined_by_libraries,
    has_another_forward,
    keep_attribute,
    replace_method,
    require_undisturbed,
    set_attribute,
    submodules,
)
from kontext_fast.pipeline.edit import OF_FIRST_PROCESS
from kontext_fast.records.schema import EMULATED

if TYPE_CHECKING:
    from torch import Tensor

    from kontext_fast.engine.graphs.recorded_calls import StepGraphs
    from kontext_fast.engine.pass_parallel import PassParallel
    from kontext_fast.engine.ranks import Ranks
    from kontext_fast.engine.sequence_parallel import SequenceParallel
    from kontext_fast.engine.step_reuse import Schedule
    from kontext_fast.engine.transformer import Branch, EngineTransformer
    from kontext_fast.optimizations.shared_encoding import SharedEncoding
    from kontext_fast.pipeline.device import Machine


class Engine(Optimization):
    """Our own forward. In bf16 it rounds where sums are split differently; in fp8 it also rounds every operand of the
    large matrix products to 4 significant bits."""

    name: ClassVar[str] = "engine"
    summary: ClassVar[str] = "our own transformer forward: fused operations, nothing to compile, bf16, fp8 or int8"
    revision: ClassVar[int] = 2
    """2, of 2026-11-27: products of MLPs apply the GELU, in fp8 with scales that are known before; the last block
    computes image tokens only."""
    phase: ClassVar[Phase] = Phase.WEIGHTS
    conflicts: ClassVar[tuple[Conflict, ...]] = (
        Conflict("fuse_qkv", because="the engine fuses projections itself; leave fuse_qkv out"),
        Conflict("first_block_cache", because="the engine runs blocks of its own; use step_reuse instead"),
        Conflict("compile", because="the engine has kernels of its own; leave compile out"),
    )

    precision: Literal["bf16", "fp8", "int8"] = "bf16"
    """`bf16`: the precision the pipeline was loaded in, nothing is quantized; `fp8`: e4m3 inside of the blocks, with
    one scale per token and per output channel, for the MLPs' first products one for each sample that is known before;
    `int8`: scales of tokens and channels in rotated int8, with less than half the error, for Hopper GPUs."""
    full_precision: tuple[int, ...] = ()
    """Steps that are computed in the precision the pipeline was loaded in, by number from 0, or from -1 backwards from
    the last one; for fp8 and int8, whose engine then holds the weights of the blocks in both precisions."""
    attention: str = AUTO
    """The name of a kernel in `engine.attention`, refused where that cannot run. `auto` is the fastest one that the
    machine can run and that rounds only; a plan names which one that is."""
    modulations: Literal["device", "host"] = "device"
    """Where the layers of the blocks' modulations are, 6 GiB at full size, which run once per request: in `host` memory
    they pass through the device one by one. With the preset `low_memory` for cards of 16 GB."""
    originals: Literal["host", "device"] = "host"
    """Where the weights wait that 8 bits replace, 17 GB at full size: in `host` memory, or on the `device`, for a card
    with 48 GB or more, so that applying and reverting copy nothing."""
    gpus: Annotated[int, Field(ge=1)] = 1
    """Of one edit: in a program of that many processes, which `torchrun` or `kontext edit --gpus` starts, each computes
    a share of every step (see `engine.sequence_parallel`). At full size 2, 3, 4, 6 and 8 share the 24 heads evenly."""
    transport: Literal["collectives", "peer_memory"] = "collectives"
    """How several GPUs exchange heads: by collectives of torch.distributed, or written to each other's memory."""
    graphs: Literal["auto", "never"] = "auto"
    """`auto`: a CUDA graph launches the kernels of a step where a table by card and tokens says that a host may be too
    slow to: the same bits, for memory of its own. It is recorded at the second step of a layout. Several GPUs record
    steps of every size."""
    quantized_file: Path | None = Field(default=None, exclude=True)
    """A file that `save_quantized` wrote, read instead of quantizing again. No parameter of a record: the numbers are
    the same either way, since a file made from other weights is refused."""

    @field_validator("attention")
    @classmethod
    def _is_a_kernel(cls, name: str) -> str:
        name = AUTO if name == "default" else name  # its name in earlier versions
        if name not in (known := cls.choices()["attention"]):
            raise ValueError(unknown_name("attention kernel", name, known))
        return name

    @model_validator(mode="after")
    def _precisions_fit(self) -> Engine:
        if self.quantized_file is not None and self.precision == "bf16":
            raise ValueError("quantized_file holds quantized weights; choose precision=fp8 or int8, or leave it out")
        if self.full_precision and self.precision == "bf16":
            raise ValueError("every step has full precision already; choose precision=fp8 or leave full_precision out")
        return self

    def parameters(self) -> dict[str, Any]:
        """Some only where they are not as by default."""
        # Later than the first records.
        added = "full_precision", "modulations", "originals", "gpus", "transport", "graphs"
        unused = {name for name in added if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(mode="json", exclude=unused)

    def full_precision_steps(self, total: int) -> frozenset[int]:
        """The steps, of `total`, that are computed in full precision."""
        return frozenset(step + total if step < 0 else step for step in self.full_precision if -total <= step < total)

    @property
    def effect(self) -> Effect:  # type: ignore[override]
        """Lossy in fp8 and int8, or with a kernel of attention that is."""
        named = self.attention != AUTO
        lossy = self.precision != "bf16" or (named and attention_kernels()[self.attention].effect == "lossy")
        return Effect.LOSSY if lossy else Effect.NUMERIC

    @classmethod
    def choices(cls) -> dict[str, tuple[str, ...]]:
        """The kernels of attention as well."""
        return {**super().choices(), "attention": (AUTO, *attention_kernels())}

    def on_machine(self, machine: Machine) -> Engine:
        """With the kernel of attention that `auto` stands for there."""
        if self.attention != AUTO or machine.device not in ("cpu", "cuda"):
            return self
        return self.model_copy(update={"attention": fastest_attention(machine.device, machine.capability).name})

    def is_what_ran(self, parameters: Mapping[str, Any]) -> bool:
        """`auto` may have been any kernel that rounds only; records of earlier versions call it `default`."""
        ran = {**parameters, "attention": parameters.get("attention", "default")}
        if self.attention == AUTO:
            numeric = {name for name, kernel in attention_kernels().items() if kernel.effect == "numeric"}
            ran["attention"] = AUTO if ran["attention"] in numeric | {"default"} else ran["attention"]
        return ran == self.parameters()

    def label(self, *, architecture_only: bool) -> str | None:
        """How many GPUs make each image."""
        return None if self.gpus == 1 else f"{self.gpus} GPUs together; memory and energy are those of the first one"

    def label_on(self, machine: Machine) -> str | None:
        """That the fused kernels do not run, where they do not."""
        kind = kernel_kind(machine.device, self.precision)
        if kind == "emulated":
            return EMULATED
        if kind == "portable" and machine.device != "cpu":
            return "kernel: portable (plain PyTorch, not the fused kernels)"
        return None

    def refusal(self, machine: Machine) -> str | None:
        """On a GPU fp8 needs compute capability 8.9 and int8 9.0, and both the fused kernels; a CPU emulates fp8."""
        if self.gpus > 1 and self.transport == "peer_memory" and machine.device == "cpu":
            return "GPUs alone can write to each other's memory; use transport=collectives"
        return refusal(machine.device, machine.capability, self.precision, self.attention)

    def precompile_calls(self, pipe: Any) -> Sequence[Callable[[], object]]:
        """The kernels of a step."""
        device = pipe._execution_device
        ops = make_ops(device.type, self.precision, self.attention)
        precisions = {self.precision != "bf16", self.precision != "bf16" and not self.full_precision}
        return [
            call
            for quantize in precisions
            for call in ops.precompile_calls(pipe.transformer, device, quantize=quantize)
        ]

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Replace `forward` on the instance `pipe.transformer` while a request runs.

        The fact `mlp_scales` says by which scales MLPs round in 8 bits, `static` or those of `rows`; `as_stored` is the
        number of matrices whose numbers are those of a float8 file, and `step_graphs` what CUDA graphs of steps do, or
        why there are none (see `engine.graphs.recorded_calls`).

        Raises InvalidInput if the transformer is not plain (LoRA adapters, quantized layers, hooks, float16), and in a
        request if it stopped being so or if that uses ControlNet or IP-Adapter.
        """
        from kontext_fast.engine.quantized_file import QuantizedFile
        from kontext_fast.engine.transformer import EngineTransformer
        from kontext_fast.engine.weights import quantized_copy, require_plain, take_weights

        transformer = pipe.transformer
        _require_untouched(transformer)
        require_plain(transformer)
        replaced = _Replaced(transformer)
        replaced.require_undisturbed(transformer)
        place = pipe._execution_device
        device = place.type
        require_dtype(device, transformer.dtype)
        parallel = self._parallel(place)
        ops = make_ops(device, self.precision, self.attention)
        stored = None if self.quantized_file is None else QuantizedFile(self.quantized_file, self.precision)
        take = partial(take_weights, device=place, modulations_in_host_memory=self.modulations == "host")
        both = self.precision != "bf16" and (self.full_precision or self.originals == "device")
        unquantized = take(transformer, "bf16", undo) if both else None
        if unquantized is None:
            weights = take(transformer, self.precision, undo, quantizer=stored)
        else:
            weights = quantized_copy(unquantized, self.precision, stored)
        if stored is not None:
            stored.require_made_from(weights)
        calls = track_calls(pipe, undo)
        graphs, of_graphs = self._step_graphs(place, parallel, undo)
        engine = EngineTransformer(weights, ops, unquantized, parallel, graphs)
        ranks = None if parallel is None else parallel.ranks
        forward = EngineForward(transformer, engine, calls, replaced, self.full_precision_steps, ranks)
        if ranks is not None and ranks.size == _PASSES_OF_TRUE_CFG:
            forward.of_passes = EngineTransformer(weights, ops, unquantized)
        if device == "cuda":
            forward.before_first_step = _upload_without_waiting(calls, undo)
        _install(pipe, forward, calls, undo)
        return {
            "kernel": ops.kernel,
            "attention_kernel": ops.attention_kernel.name,
            "quantized": None if self.precision == "bf16" else "now" if stored is None else "loaded",
            "mlp_scales": engine.mlp_scales,
            "host_bytes": weights.sources.host_bytes,
            "as_stored": weights.sources.as_stored or None,
            "step_graphs": of_graphs,
        }

    def _parallel(self, place: Any) -> SequenceParallel | None:
        """With the other processes of this program, where there are `gpus`. Raises InvalidInput."""
        if self.gpus == 1:
            return None
        import torch

        from kontext_fast.engine.ranks import join
        from kontext_fast.engine.sequence_parallel import SequenceParallel

        # A device without an index is the current one, which a tensor there names.
        return SequenceParallel(join(self.gpus, torch.empty(0, device=place).device), self.transport)

    def _step_graphs(
        self, place: Any, parallel: SequenceParallel | None, undo: ExitStack
    ) -> tuple[StepGraphs | None, Facts | str | None]:
        """What records steps on the device `place`, until `undo` is closed, and what it does; or why there is none."""
        most_tokens = tokens_for_graphs(place)
        if self.graphs == "never" or (place.type == "cpu" and not most_tokens):
            return None, None
        if not most_tokens:
            return None, "off: no row for this card"
        from kontext_fast.engine.graphs import recording
        from kontext_fast.engine.graphs.recorded_calls import StepGraphs

        recorder = recording.recorder_for(place)
        assert recorder is not None
        if parallel is None:
            graphs = StepGraphs(recorder, most_tokens)
        else:  # GPUs that share a step wait for each other wherever a host is late, whatever its size
            graphs = StepGraphs(recorder, None, parallel.ranks.everywhere)
        undo.callback(graphs.clear)
        return graphs, graphs.facts


def save_quantized(pipe: Any, file: str | Path) -> None:
    """Write the quantized weights of `pipe`, accelerated by an engine in fp8 or int8, to `file` for `quantized_file`.

    Raises InvalidInput if there are none or the file cannot be written.
    """
    from kontext_fast.engine.quantized_file import save

    forward = engine_of(pipe.transformer)
    if forward is None:
        raise InvalidInput("This pipeline does not run on the engine; accelerate it with the preset balanced first.")
    save(forward.engine.weights, Path(file))


_MEMORY, _PASSES = "engine", "passes"

_PASSES_OF_TRUE_CFG = 2

ScheduleOf = Callable[[Any, Sequence[float]], "Schedule"]
"""Which steps of a request are computed, given its scheduler and its sigmas, as many as steps and a last one."""


@dataclass
class _RunningBranch:
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
        replaced: _Replaced,
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
        branches: dict[int, _RunningBranch] = call.memory.setdefault(_MEMORY, {})
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

        if _PASSES not in call.memory:
            call.memory[_PASSES] = PassParallel(self.ranks)
        passes: PassParallel = call.memory[_PASSES]
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
    ) -> _RunningBranch:
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
        return _RunningBranch(
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


def _install(pipe: Any, forward: EngineForward, calls: CallTracker, undo: ExitStack) -> None:
    """Make `forward` that of the transformer of `pipe` while one of `calls` runs, until `undo` is closed."""
    transformer = pipe.transformer
    bound = MethodType(forward, transformer)

    def restore() -> None:
        if vars(transformer).get("forward") is not bound:
            raise KontextError("The transformer's forward was replaced after accelerate; load the checkpoint again.")

    keep_attribute(transformer, "forward", undo)
    transformer.forward = bound
    undo.callback(restore)
    # So that merging a LoRA, which would change weights that are no longer read, sees fused projections and refuses.
    set_attribute(transformer, "fused_projections", True, undo)

    def check(call: PipelineCall) -> None:
        if vars(transformer).get("forward") is not bound:
            raise InvalidInput(
                "Something replaced the transformer's forward after accelerate; put back what was there (a cache goes "
                "by pipe.transformer.disable_cache())."
            )

    def on_time(call: PipelineCall) -> None:
        branches: dict[int, _RunningBranch] = call.memory.get(_MEMORY, {})
        if any(bool(running.compare_times()) for running in branches.values()):
            raise KontextError(
                "The pipeline ran at other timesteps than its scheduler announced, so the image is wrong; "
                "use a preset without the engine."
            )

    def reset(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """At the end of a call: of hooks that remember something, which diffusers looks for in every module."""
        call = calls.current
        if call is None or not call.memory.get(_MEMORY):
            original(*args, **kwargs)
            return
        # The others have none, as the first step has proved.
        run_by_the_engine = [module for name in _RUN_BY_THE_ENGINE for module in submodules(getattr(transformer, name))]
        for module in (transformer, *run_by_the_engine):
            if (registry := vars(module).get("_diffusers_hook")) is not None:
                registry.reset_stateful_hooks(recurse=False)

    replace_method(transformer, "_reset_stateful_cache", reset, undo)
    if forward.ranks is not None:
        _keep_together(forward, forward.ranks, pipe, calls, undo)
    calls.on_begin(check, undo)
    calls.on_completed(on_time, undo)
    for name in _OFFLOADING:
        calls.set_member(name, partial(_refusing, name), undo)


def _upload_without_waiting(calls: CallTracker, undo: ExitStack) -> Callable[[PipelineCall], None]:
    """Have calls bring what they make in host memory to the GPU without waiting for it, until `undo` is closed.

    The result ends that for a call: a step has many operations, none of which is such a copy.
    """
    from kontext_fast.engine.host_memory import Uploads

    uploads = Uploads()

    def begin(call: PipelineCall) -> None:
        own, names = vars(call.pipe), ("text_encoder", "text_encoder_2", "vae")
        # `is not None`: a module that `torch.compile` wrapped has no truth value, as it asks the module for its length.
        parts = [part for name in names if (part := own.get(name)) is not None]
        # What is compiled would be compiled once more, with the mode in it.
        if not any(part._compiled_call_impl or "_orig_mod" in part._modules for part in parts):
            uploads.enter()
            call.memory[uploads] = True

    def end(call: PipelineCall) -> None:
        if uploads in call.memory and uploads.leave():
            del call.memory[uploads]

    calls.on_begin(begin, undo)
    calls.on_end(end, undo)
    return end


def _keep_together(forward: EngineForward, ranks: Ranks, pipe: Any, calls: CallTracker, undo: ExitStack) -> None:
    """Have every call end in all processes as it ends in one of them, until `undo` is closed."""
    from kontext_fast.optimizations.shared_encoding import SharedEncoding

    entered = object()
    forward.encoding = encoding = SharedEncoding(ranks, calls)
    encoding.install(pipe, undo)

    def begin(call: PipelineCall) -> None:
        if calls.running_calls > 1:
            raise InvalidInput("One call at a time runs on several GPUs; wait until the other one has ended.")
        call.memory[entered] = True
        ranks.begin()

    def complete(call: PipelineCall) -> None:
        from kontext_fast.engine.ranks import require_alike

        ranks.agree("end of the call", last=True)
        if (passes := call.memory.get(_PASSES)) is not None:
            passes.require_complete()
        for running in call.memory.get(_MEMORY, {}).values():
            if running.sampled is not None:
                require_alike(running.sampled)
        encoding.require_alike(call)

    def end(call: PipelineCall) -> None:
        if entered in call.memory:
            ranks.leave()

    calls.on_begin(begin, undo)
    calls.on_completed(complete, undo)
    calls.on_end(end, undo)
    calls.set_member(OF_FIRST_PROCESS, lambda _: staticmethod(ranks.from_first), undo)


_OFFLOADING = ("enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload")


def _refusing(name: str, _: type) -> Callable[..., None]:
    def refuse(_pipe: Any, *_: Any, **__: Any) -> None:
        raise InvalidInput(
            f"{name} would move weights from under the engine; call revert(), then {name}, then accelerate again."
        )

    return refuse


def _require_untouched(transformer: Any) -> None:
    if has_another_forward(transformer):
        require_undisturbed([("The transformer", transformer)], "the engine")
    if transformer._compiled_call_impl is not None:
        raise InvalidInput("The transformer is compiled already; load it again without torch.compile.")
    if not defined_by_libraries(type(transformer).forward):
        raise InvalidInput("The forward of the transformer's class was replaced; put back the one of diffusers.")


_RUN_BY_THE_ENGINE = ("time_text_embed", "pos_embed")
"""Called as they are, with whatever is on them."""


class _Replaced:
    """The modules of a transformer in whose place the engine runs."""

    def __init__(self, transformer: Any) -> None:
        import torch

        # Blocks of a kind are alike, so one of each stands for all of them.
        with torch.device("meta"):
            alike = type(transformer).from_config({**transformer.config, "num_layers": 1, "num_single_layers": 1})
        self._classes = {name: type(module) for name, module in alike.named_modules()}

    def require_undisturbed(self, transformer: Any) -> None:
        """Raise InvalidInput, with a remedy, unless every module is and runs what diffusers puts in its place."""
        from kontext_fast.engine.weights import require_known_processor

        modules = [
            (name, module)
            for name, module in transformer.named_modules()
            if name and not name.startswith(_RUN_BY_THE_ENGINE)
        ]
        require_undisturbed(modules, "the engine")
        for name, module in modules:
            expected = self._classes.get(_BLOCK.sub("_blocks.0", name), type(module))
            if type(module) is not expected:
                raise InvalidInput(
                    f"{name} is a {type(module).__name__} in place of a {expected.__name__}, which the engine would "
                    "ignore; put back what was there, then accelerate again."
                )
            if name.endswith(".attn"):
                require_known_processor(module.processor)
                if not defined_by_libraries(type(module.processor).__call__):
                    raise InvalidInput(
                        "The attention of diffusers was replaced in its class, which the engine would ignore; put back "
                        "what was there, then accelerate again."
                    )


_BLOCK = re.compile(r"_blocks\.\d+")


def _require_supported(attention_kwargs: dict[str, Any] | None, *controlnet: Any) -> None:
    unsupported = []
    if any(samples is not None for samples in controlnet):
        unsupported.append("ControlNet")
    # A LoRA scale scales adapters that are not fused, and there are none.
    if names := [name for name in attention_kwargs or {} if name != "scale"]:
        unsupported.append(f"attention arguments ({', '.join(names)}; IP-Adapter is one of them)")
    if unsupported:
        raise InvalidInput(f"The engine does not support {' and '.join(unsupported)}; leave one of the two out.")
