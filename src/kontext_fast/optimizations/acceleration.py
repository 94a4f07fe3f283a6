"""Applies a plan to a pipeline that the user built, and reverts it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations import DEFAULT_PRESET
from kontext_fast.optimizations.base import Facts, Optimization
from kontext_fast.optimizations.call_tracking import CallTracker, PipelineCall, track_calls
from kontext_fast.optimizations.presets import Plan, Preset, faster_presets, require_memory, resolve
from kontext_fast.pipeline.device import Machine
from kontext_fast.pipeline.load import FULL_SIZE_BYTES
from kontext_fast.records.schema import StepKind

_MARK = "_kontext_fast_acceleration"


def accelerate(
    pipe: Any,
    preset: str | Preset | Sequence[Optimization] = DEFAULT_PRESET,
    *,
    device: Any = None,
    quiet: bool = False,
) -> Acceleration:
    """Make `pipe`, a FluxKontextPipeline or FluxPipeline, faster in place; prints the applied plan unless `quiet`.

    `preset` is the name of a preset, a Preset or a list of optimizations. Use the pipeline as before; `revert()` on
    the result, or leaving a `with` block over it, restores the original pipeline.
    `device` is where it will run; None: where it is. A pipeline in host memory can run on a GPU that is too small for
    it with the preset `low_memory` and `device="cuda"`.

    Raises InvalidInput for an unknown preset, conflicting optimizations, another class of pipeline or one that is
    accelerated already, and Refused if this machine lacks what the preset needs. Then nothing has changed.
    """
    _require_flux(pipe)
    machine = Machine.detect(pipe._execution_device if device is None else device)
    plan = resolve(preset, machine)
    if _weights_bytes(pipe) >= FULL_SIZE_BYTES:
        require_memory(plan, machine)
    acceleration = apply_plan(plan, pipe, device)
    if not quiet:
        print(acceleration.describe())  # noqa: T201 - this is the one call whose user is a person at a prompt
        if plan.preset == DEFAULT_PRESET:
            print(faster_presets())  # noqa: T201
    return acceleration


def current(pipe: Any) -> Acceleration | None:
    """The acceleration that `pipe` runs under, or None."""
    acceleration = vars(type(pipe)).get(_MARK)
    return acceleration if isinstance(acceleration, Acceleration) else None


class Acceleration:
    """A plan applied to one pipeline. A context manager that reverts on exit."""

    def __init__(self, plan: Plan, facts: dict[str, Facts], calls: CallTracker, undo: ExitStack) -> None:
        self.plan = plan
        self.facts = facts
        """Facts of each technique, by name, as of the most recent call."""
        self._calls = calls
        self._undo = undo

    def revert(self) -> None:
        """Restore the original pipeline, bit-identical; does nothing the second time."""
        self._undo.close()

    def describe(self) -> str:
        """One line per technique: name, effect, parameters and facts."""
        lines = [f"{self.plan.preset}: {len(self.plan.optimizations)} optimizations, revert() takes them off"]
        if not self.plan.optimizations:
            lines = [f"{self.plan.preset}: nothing changed"]
        for optimization in self.plan.optimizations:
            details = {**optimization.parameters_for_people(), **self.facts[optimization.name]}
            told = ", ".join(f"{key}={value}" for key, value in details.items() if value not in (None, [], False))
            lines.append(f"  {optimization.name} ({optimization.effect.value}): {told}")
        return "\n".join([*lines, *(f"  note: {label}" for label in self.plan.labels)])

    def last_step_kinds(self) -> list[StepKind]:
        """Kinds of the steps of the most recent call, in order, as far as it got; empty before the first."""
        return list(self._calls.last_kinds)

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.revert()


def apply_plan(plan: Plan, pipe: Any, device: Any = None) -> Acceleration:
    """Apply `plan` to `pipe` in place; if one technique fails, those before it are undone and its error propagates.

    `device` is where it will run; None: where it is. Another one needs a plan that is `in_host_memory`.
    Raises InvalidInput for another device otherwise, and if `pipe` is no FLUX pipeline or is accelerated already.
    """
    _require_flux(pipe)
    if (already := current(pipe)) is not None:
        raise InvalidInput(
            f"This pipeline is accelerated already ({already.plan.preset}); call revert() on that one first."
        )
    with ExitStack() as undo:
        calls = track_calls(pipe, undo)
        calls.on_begin(_same_parts(pipe), undo)
        if device is not None:
            _run_on(pipe, plan, device, undo)
        # Kernels compile concurrently while weights are moved; in the first image they would compile one by one.
        with run_concurrently(
            [call for optimization in plan.optimizations for call in optimization.precompile_calls(pipe)]
        ):
            facts = {optimization.name: optimization.apply(pipe, undo) for optimization in plan.optimizations}
        acceleration = Acceleration(plan, facts, calls, undo.pop_all())
    # On the class of this pipeline alone, so that it is freed with it.
    setattr(type(pipe), _MARK, acceleration)
    return acceleration


def _run_on(pipe: Any, plan: Plan, device: Any, undo: ExitStack) -> None:
    """Have `pipe` make its inputs on `device`, where `plan` brings what runs."""
    import torch

    # A device without an index is the current one of its type, which a tensor there names.
    chosen, now = (torch.empty(0, device=place).device for place in (device, pipe._execution_device))
    if chosen == now:
        return
    if not plan.in_host_memory:
        raise InvalidInput(
            f"The pipeline is on {now}; move it with pipe.to({str(device)!r}), or use the preset low_memory if it "
            "does not fit there."
        )
    # On the class that `track_calls` made for this pipeline alone.
    tracked: Any = type(pipe)
    tracked._execution_device = property(lambda _: chosen)
    undo.callback(delattr, tracked, "_execution_device")


def _weights_bytes(pipe: Any) -> int:
    models = (part for part in pipe.components.values() if hasattr(part, "parameters"))
    return sum(parameter.nbytes for model in models for parameter in model.parameters())


def _require_flux(pipe: Any) -> None:
    from diffusers import FluxKontextPipeline, FluxPipeline, FluxTransformer2DModel

    if not isinstance(pipe, (FluxKontextPipeline, FluxPipeline)):
        raise InvalidInput(f"Pass a FluxKontextPipeline or FluxPipeline to accelerate, not a {type(pipe).__name__}.")
    if not isinstance(pipe.transformer, FluxTransformer2DModel):
        raise InvalidInput(
            f"The pipeline's transformer is a {type(pipe.transformer).__name__}, not a plain FluxTransformer2DModel; "
            "load the pipeline again without wrapping it."
        )


def _same_parts(pipe: Any) -> Any:
    transformer, vae = pipe.transformer, pipe.vae

    def check(call: PipelineCall) -> None:
        if call.pipe.transformer is not transformer or call.pipe.vae is not vae:
            raise InvalidInput(
                "The transformer or VAE was replaced after accelerate; revert first, replace it, accelerate again."
            )

    return check


@contextmanager
def run_concurrently(calls: Sequence[Callable[[], object]]) -> Iterator[None]:
    """Run `calls` in threads during the body, wait for them at its end and raise the first error of one."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        started = [threads.submit(call) for call in calls]
        yield
        for call in started:
            call.result()
