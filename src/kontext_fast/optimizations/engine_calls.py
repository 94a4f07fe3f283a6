"""The engine in the calls of a pipeline: what begins and ends with each of them, in one process or in several."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

from kontext_fast.errors import InvalidInput, KontextError
from kontext_fast.optimizations.call_tracking import CallTracker, PipelineCall
from kontext_fast.optimizations.engine_forward import MEMORY, PASSES, EngineForward, RunningBranch
from kontext_fast.optimizations.patching import keep_attribute, replace_method, set_attribute, submodules
from kontext_fast.optimizations.replaced_modules import RUN_BY_THE_ENGINE
from kontext_fast.pipeline.edit import OF_FIRST_PROCESS

if TYPE_CHECKING:
    from kontext_fast.engine.ranks import Ranks

_OFFLOADING = ("enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload")


def install(pipe: Any, forward: EngineForward, calls: CallTracker, undo: ExitStack) -> None:
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
        branches: dict[int, RunningBranch] = call.memory.get(MEMORY, {})
        if any(bool(running.compare_times()) for running in branches.values()):
            raise KontextError(
                "The pipeline ran at other timesteps than its scheduler announced, so the image is wrong; "
                "use a preset without the engine."
            )

    def reset(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """At the end of a call: of hooks that remember something, which diffusers looks for in every module."""
        call = calls.current
        if call is None or not call.memory.get(MEMORY):
            original(*args, **kwargs)
            return
        # The others have none, as the first step has proved.
        run_by_the_engine = [module for name in RUN_BY_THE_ENGINE for module in submodules(getattr(transformer, name))]
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


def upload_without_waiting(calls: CallTracker, undo: ExitStack) -> Callable[[PipelineCall], None]:
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
        if (passes := call.memory.get(PASSES)) is not None:
            passes.require_complete()
        for running in call.memory.get(MEMORY, {}).values():
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


def _refusing(name: str, _: type) -> Callable[..., None]:
    def refuse(_pipe: Any, *_: Any, **__: Any) -> None:
        raise InvalidInput(
            f"{name} would move weights from under the engine; call revert(), then {name}, then accelerate again."
        )

    return refuse
