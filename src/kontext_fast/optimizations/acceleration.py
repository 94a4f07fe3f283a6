"""Applies a plan to a pipeline that the user built, and reverts it."""

from __future__ import annotations

import html
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from threading import RLock
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations import DEFAULT_PRESET
from kontext_fast.optimizations.base import Facts, Optimization, Phase
from kontext_fast.optimizations.call_tracking import CallTracker, track_calls
from kontext_fast.optimizations.patching import Originals, group_hook, set_attribute
from kontext_fast.optimizations.presets import Plan, Preset, faster_presets, find_preset, require_memory, resolve
from kontext_fast.pipeline.device import Machine
from kontext_fast.pipeline.folder import MODELS
from kontext_fast.pipeline.load import FULL_SIZE_BYTES
from kontext_fast.records.schema import StepKind


def accelerate(
    pipe: Any,
    preset: str | Preset | Sequence[Optimization] = DEFAULT_PRESET,
    *,
    device: Any = None,
    quiet: bool = False,
    **parameters: Any,
) -> Acceleration:
    """Make `pipe` faster in place; prints the applied plan unless `quiet`.

    `pipe` is a FluxKontextPipeline, a FluxPipeline or one of FLUX.1 with an input image or a mask, but no ControlNet.

    `preset` is the name of a preset, a Preset or a list of optimizations. Use the pipeline as before; `revert()` on
    the result, or leaving a `with` block over it, restores the original pipeline.
    `parameters` take the place of those of the preset's optimizations: `accelerate(pipe, "turbo", computed=5)`.
    `device` is where it will run; None: where it is. A pipeline in host memory can run on a GPU that is too small for
    it with the preset `low_memory` and `device="cuda"`. Where diffusers' own offloading is on it, `offload` takes the
    place of that in presets with the engine, until `revert()`.

    Raises InvalidInput for an unknown preset or parameter, conflicting optimizations, another class of pipeline or one
    that is accelerated already, and Refused if this machine lacks what the preset needs. Then nothing has changed.
    """
    _require_flux(pipe)
    if parameters:
        if not isinstance(preset, str | Preset):
            raise InvalidInput("Parameters change a preset; set those of a list on its optimizations.")
        preset = (find_preset(preset) if isinstance(preset, str) else preset).replace(**parameters)
    plan = resolve_on(pipe, preset, device)
    acceleration = apply_plan(plan, pipe, device)
    if not quiet:
        print(acceleration.describe())  # noqa: T201 - this is the one call whose user is a person at a prompt
        if plan.preset == DEFAULT_PRESET:
            print(faster_presets())  # noqa: T201
    return acceleration


def resolve_on(pipe: Any, preset: str | Preset | Sequence[Optimization], device: Any = None) -> Plan:
    """The plan of `preset` for a pipeline that is loaded already, and where it is, or for `device`.

    Raises what `resolve` raises, and Refused where the GPU has too little memory.
    """
    machine = Machine.detect(pipe._execution_device if device is None else device)
    plan = resolve(preset, machine)
    if _is_offloaded(pipe):
        plan = _in_place_of_hooks(plan, pipe, machine)
    if _weights_bytes(pipe) >= FULL_SIZE_BYTES:
        require_memory(plan, machine)
    return plan


def current(pipe: Any) -> Acceleration | None:
    """The acceleration that `pipe` runs under, or None. A shallow copy of an accelerated pipeline has its own."""
    shared = vars(type(pipe)).get(_SHARED)
    return shared.acceleration(pipe) if isinstance(shared, _SharedPlan) and shared.calls.in_use else None


class Acceleration:
    """A plan applied to one pipeline. A context manager that reverts on exit.

    It keeps neither the pipeline nor its weights in memory.
    """

    def __init__(self, shared: _SharedPlan, pipe: Any) -> None:
        self._pipe = weakref.ref(pipe)
        self._follow(shared)

    def _follow(self, shared: _SharedPlan) -> None:
        self.plan = shared.plan
        self.facts = shared.facts
        """Facts of each technique, by name, as of the most recent call."""
        self.adapters = shared.adapters
        """Names of the adapters that are merged into the transformer."""
        self._last = shared.calls.last
        self._shared = weakref.ref(shared)

    def revert(self) -> None:
        """Restore the original pipeline, bit-identical; does nothing the second time.

        Where other pipelines are accelerated on the same modules, those remain so until the last one is reverted.
        Raises InvalidInput while a call runs.
        """
        shared, pipe = self._shared(), self._pipe()
        if shared is not None and pipe is not None:
            shared.leave(pipe)

    def set_adapters(self, names: str | Sequence[str], strengths: float | Sequence[float] | None = None) -> None:
        """Run with the adapters `names` at `strengths` (1 each) from the next call on, of those that are loaded.

        As `pipe.set_adapters`, which does the same while the pipeline is accelerated: no file is read, since the
        original weights are in host memory, but what was made of the weights, such as quantized ones, is made again.
        Raises InvalidInput for other names, another number of strengths, while a call runs and after `revert`.
        """
        from kontext_fast.optimizations.adapters import check_names

        shared, pipe = self._shared(), self._pipe()
        if shared is None or pipe is None or current(pipe) is not self:
            raise InvalidInput("This acceleration was reverted; call pipe.set_adapters, then accelerate again.")
        names = [names] if isinstance(names, str) else list(names)
        values = list(strengths) if isinstance(strengths, Sequence) else [strengths] * len(names)
        check_names(pipe, names, values)
        with _applying:
            pipelines = shared.accelerations()
            for each in pipelines:
                shared.leave(each)
            try:
                pipe.set_adapters(names, values)
            finally:
                renewed: _SharedPlan | None = None
                for each, acceleration in pipelines.items():
                    if renewed is None:
                        renewed = _apply(shared.plan, each, shared.device)
                    renewed.join(shared.plan, each, None, acceleration)

    def describe(self) -> str:
        """One line per technique: name, effect, parameters and facts."""
        lines = [f"{self.plan.preset}: {len(self.plan.optimizations)} optimizations, revert() takes them off"]
        if not self.plan.optimizations:
            lines = [f"{self.plan.preset}: nothing changed"]
        for optimization in self.plan.optimizations:
            details = {**optimization.parameters_for_people(), **self.facts[optimization.name]}
            told = ", ".join(
                f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}"
                for key, value in details.items()
                if value not in (None, [], False)
            )
            lines.append(f"  {optimization.name} ({optimization.effect.value}): {told}")
        if self.adapters:
            lines.append(
                f"  merged: {', '.join(self.adapters)}; acceleration.set_adapters(names, strengths) exchanges them"
            )
        return "\n".join([*lines, *(f"  note: {label}" for label in self.plan.labels)])

    def last_step_kinds(self) -> list[StepKind]:
        """Kinds of the steps of the most recent call, in order, as far as it got; empty before the first."""
        return list(self._last.kinds)

    def __repr__(self) -> str:
        names = ", ".join(optimization.name for optimization in self.plan.optimizations) or "nothing changed"
        return f"<Acceleration {self.plan.preset}: {names}; revert() takes it off>"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.describe())}</pre>"

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.revert()


class _SharedPlan:
    """A plan applied to models, for all pipelines that have them. It lives on the transformer, and is freed with it."""

    def __init__(
        self, plan: Plan, facts: dict[str, Facts], calls: CallTracker, pipe: Any, device: Any, adapters: tuple[str, ...]
    ) -> None:
        self.plan = plan
        self.facts = facts
        self.calls = calls
        self.device = device
        """As it was asked for."""
        self.adapters = adapters
        self.undo = ExitStack()
        self._device = pipe._execution_device
        self._models = {name: getattr(pipe, name) for name in MODELS}
        self._accelerated: WeakSet[Any] = WeakSet()
        self._accelerations: WeakKeyDictionary[Any, Acceleration] = WeakKeyDictionary()

    def acceleration(self, pipe: Any) -> Acceleration:
        """The one handle of `pipe`."""
        if pipe not in self._accelerations:
            self._accelerations[pipe] = Acceleration(self, pipe)
        return self._accelerations[pipe]

    def accelerations(self) -> dict[Any, Acceleration]:
        """The handles of all pipelines that are accelerated with this plan."""
        return {pipe: self.acceleration(pipe) for pipe in self._accelerated}

    def join(self, plan: Plan, pipe: Any, device: Any, handle: Acceleration | None = None) -> Acceleration:
        """Accelerate `pipe`, which has the transformer that this plan was applied to; `handle` goes on with it."""
        import torch

        if pipe in self._accelerated:
            raise InvalidInput(
                f"This pipeline is accelerated already ({self.plan.preset}); call revert() on that one first."
            )
        other = device is not None and torch.empty(0, device=device).device != self._device
        if other or plan.content_hash != self.plan.content_hash:
            raise InvalidInput(
                f"The transformer of this pipeline is accelerated already, by another pipeline ({self.plan.preset} on "
                f"{self._device}); choose the same, or call revert() on that one first."
            )
        self.require_models(pipe)
        self.calls.attach(pipe)
        self._accelerated.add(pipe)
        if handle is not None:
            self._accelerations[pipe] = handle
            handle._follow(self)
        return self.acceleration(pipe)

    def leave(self, pipe: Any) -> None:
        """Revert `pipe`, and the models too where no other pipeline is accelerated on them."""
        with _applying:
            self._accelerated.discard(pipe)
            if not self._accelerated:
                self.calls.close()
                self.undo.close()
            self.calls.detach(pipe)

    def require_models(self, pipe: Any) -> None:
        """Raise InvalidInput if `pipe` has other models than those that were accelerated; it may have fewer."""
        for name, model in self._models.items():
            if (its := getattr(pipe, name, None)) is not None and its is not model:
                raise InvalidInput(
                    f"The {name} of this pipeline was replaced after accelerate; revert first, replace it, then "
                    "accelerate again."
                )


_SHARED = "_kontext_fast_shared_plan"

_applying = RLock()
"""Plans are applied and reverted one at a time, in whichever threads."""


def apply_plan(plan: Plan, pipe: Any, device: Any = None) -> Acceleration:
    """Apply `plan` to `pipe` in place; if one technique fails, those before it are undone and its error propagates.

    `device` is where it will run; None: where it is. Another one needs a plan that is `in_host_memory`.
    Raises InvalidInput for another device otherwise, and if `pipe` is no FLUX pipeline or is accelerated already.
    """
    _require_flux(pipe)
    with _applying:
        shared = vars(pipe.transformer).get(_SHARED)
        if isinstance(shared, _SharedPlan):
            return shared.join(plan, pipe, device)
        return _apply(plan, pipe, device).join(plan, pipe, None)


def _apply(plan: Plan, pipe: Any, device: Any) -> _SharedPlan:
    with ExitStack() as undo:
        calls = track_calls(pipe, undo)
        if plan.in_host_memory and _is_offloaded(pipe):
            from kontext_fast.optimizations.techniques.offload import set_hooks_aside

            own_device = set_hooks_aside(pipe, undo)
            device = own_device if device is None else device
        if device is not None:
            _run_on(pipe, plan, device, calls, undo)
        originals = Originals(part for name in MODELS if (part := getattr(pipe, name)) is not None)
        adapters: tuple[str, ...] = ()
        # What leaves the layers in their place runs with the wrappers of PEFT, and with a scale of each call.
        rewrites = any(optimization.phase is Phase.WEIGHTS for optimization in plan.optimizations)
        if rewrites and getattr(pipe.transformer, "peft_config", None):
            from kontext_fast.optimizations.adapters import merge_adapters

            adapters = merge_adapters(pipe, calls, undo)

            def set_adapters(pipe: Any, adapter_names: Any, adapter_weights: Any = None) -> None:
                shared.acceleration(pipe).set_adapters(adapter_names, adapter_weights)

            calls.set_member("set_adapters", lambda _: set_adapters, undo)
        # Kernels compile concurrently while weights are moved; in the first image they would compile one by one.
        with run_concurrently(
            [call for optimization in plan.optimizations for call in optimization.precompile_calls(pipe)]
        ):
            facts = {optimization.name: optimization.apply(pipe, undo) for optimization in plan.optimizations}
        shared = _SharedPlan(plan, facts, calls, pipe, device, adapters)
        # On the class of its pipelines and on the transformer, so that it is freed with them.
        calls.set_member(_SHARED, lambda _: shared, undo)
        set_attribute(pipe.transformer, _SHARED, shared, undo)
        calls.on_begin(lambda call: shared.require_models(call.pipe), undo)
        originals.give_to_copies(undo)
        shared.undo = undo.pop_all()
    return shared


def _is_offloaded(pipe: Any) -> bool:
    """Whether diffusers' own offloading, of whole models, groups of layers or each layer, is on `pipe`."""
    if getattr(pipe, "_offload_device", None) is not None and "_hf_hook" in vars(pipe.transformer):
        return True
    models = (model for name in MODELS if (model := getattr(pipe, name)) is not None)
    return any(group_hook(module) is not None for model in models for module in model.modules())


def _in_place_of_hooks(plan: Plan, pipe: Any, machine: Machine) -> Plan:
    """`plan` for `pipe` with diffusers' offloading, whose hooks the engine would not run: with `offload` in its place.

    Where parts of models are offloaded, as is chosen where memory is least, modulations wait in host memory too.
    """
    from kontext_fast.optimizations.techniques.offload import Offload, enabling

    if plan.in_host_memory or all(part.name != "engine" for part in plan.optimizations):
        return plan
    less = {} if enabling(pipe) == "enable_model_cpu_offload" else {"modulations": "host"}
    parts = [
        part.model_copy(update=less) if part.name == "engine" else part
        for part in plan.optimizations
        if all(conflict.other != Offload.name for conflict in part.conflicts)
    ]
    streamed = resolve([*parts, Offload()], machine)
    note = f"offload takes the place of {enabling(pipe)} until revert()"
    labels = dict.fromkeys((*plan.labels, *streamed.labels, note))
    return replace(streamed, preset=f"{plan.preset}+offload", labels=tuple(labels))


def _run_on(pipe: Any, plan: Plan, device: Any, calls: CallTracker, undo: ExitStack) -> None:
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
    calls.set_member("_execution_device", lambda _: property(lambda _: chosen), undo)


def _weights_bytes(pipe: Any) -> int:
    models = (part for part in pipe.components.values() if hasattr(part, "parameters"))
    return sum(parameter.nbytes for model in models for parameter in model.parameters())


_PIPELINES = (
    *("FluxKontextPipeline", "FluxKontextInpaintPipeline", "FluxPipeline"),
    *("FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxFillPipeline"),
)
"""Classes of diffusers that run one transformer of FLUX.1 and nothing beside it."""


def _require_flux(pipe: Any) -> None:
    import diffusers
    from diffusers import FluxTransformer2DModel

    classes: Any = tuple(getattr(diffusers, name) for name in _PIPELINES)
    if not isinstance(pipe, classes):
        raise InvalidInput(f"Pass one of {', '.join(_PIPELINES)} to accelerate, not a {type(pipe).__name__}.")
    if not isinstance(pipe.transformer, FluxTransformer2DModel):
        raise InvalidInput(
            f"The pipeline's transformer is a {type(pipe.transformer).__name__}, not a plain FluxTransformer2DModel; "
            "load the pipeline again without wrapping it."
        )


@contextmanager
def run_concurrently(calls: Sequence[Callable[[], object]]) -> Iterator[None]:
    """Run `calls` in threads during the body, wait for them at its end and raise the first error of one.

    The others begin when the first one has ended: what Triton finds out once in a process, a hash of its 400 MB and a
    driver that it compiles, threads that begin together each find out, and leave the body next to no time meanwhile.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        started = [threads.submit(call) for call in calls[:1]]
        started += [threads.submit(_after, started[0], call) for call in calls[1:]]
        yield
        for call in started:
            call.result()


def _after(first: Future[object], call: Callable[[], object]) -> object:
    wait([first])
    return call()
