"""`offload`: the text encoders stay in host memory and are copied to the device block by block, before the steps.

The transformer, as the engine reads it, and the VAE stay on the device. It takes the place of diffusers' own offloading
(`enable_model_cpu_offload`, `enable_sequential_cpu_offload`, `enable_group_offload`), whose hooks the engine would not
run.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Lock, get_ident
from typing import Any, ClassVar

from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.call_tracking import track_calls
from kontext_fast.optimizations.patching import GROUP_HOOK, group_hook
from kontext_fast.pipeline.device import Machine
from kontext_fast.pipeline.folder import MODELS

_ENCODERS = ("text_encoder", "text_encoder_2")


class Offload(Optimization):
    """Each block of an encoder is copied to the device when it runs and dropped there afterwards.

    Every request copies all of both encoders once: 9.8 GB at full size, where the largest part is 0.4 GB. Nothing is
    computed differently.
    """

    name: ClassVar[str] = "offload"
    summary: ClassVar[str] = "text encoders wait in host memory and pass through the device block by block"
    effect: ClassVar[Effect] = Effect.EXACT
    phase: ClassVar[Phase] = Phase.LAYOUT
    requires: ClassVar[frozenset[str]] = frozenset({"engine"})
    in_host_memory: ClassVar[bool] = True

    def label_on(self, machine: Machine) -> str | None:
        """That nothing is saved on a CPU."""
        return "offload: saves nothing on a CPU, which has one memory" if machine.device == "cpu" else None

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Move the encoders of `pipe` to host memory and its VAE to the device, and put hooks on the encoders.

        The fact `encoder_bytes` is the size of both encoders, `resident_peak_bytes` how much of them was on the
        device at once so far.
        """
        device = pipe._execution_device
        for parameter in () if pipe.vae is None else pipe.vae.parameters():
            _place(parameter, device, undo)
        facts: Facts = {"resident_peak_bytes": 0}
        resident = _Resident(device, facts)
        sizes: dict[int, int] = {}
        units: list[_Unit] = []
        for name in _ENCODERS:
            if (encoder := getattr(pipe, name)) is None:
                continue
            # The pipeline moves tokens to the device of the weights, which is the host.
            bring_inputs = encoder.register_forward_pre_hook(
                lambda _, args, kwargs: _inputs_on(device, args, kwargs), with_kwargs=True
            )
            undo.callback(bring_inputs.remove)
            for unit in _units(encoder):
                units.append(unit)
                _wait(unit, undo)
                # By identity: an embedding can be shared by two modules.
                sizes |= {id(tensor): tensor.nbytes for tensor in unit.tensors()}
                for hook in (
                    unit.module.register_forward_pre_hook(lambda *_, unit=unit: resident.bring(unit)),
                    unit.module.register_forward_hook(lambda *_, unit=unit: resident.drop(unit), always_call=True),
                ):
                    undo.callback(hook.remove)
        facts["encoder_bytes"] = sum(sizes.values())
        # Hooks do not run after an interruption by the keyboard.
        track_calls(pipe, undo).on_end(lambda _: resident.drop_all(units), undo)
        return facts


def enabling(pipe: Any) -> str:
    """The method that diffusers' offloading was put on `pipe`, or on one of its models, with."""
    if any(group_hook(module) is not None for model in _models(pipe) for module in model.modules()):
        return _BY_GROUPS
    return "enable_model_cpu_offload" if pipe._all_hooks else "enable_sequential_cpu_offload"


def set_hooks_aside(pipe: Any, undo: ExitStack) -> Any:
    """Take diffusers' offloading off `pipe`, all in host memory then, until `undo` is closed. Returns its device."""
    method = enabling(pipe)
    if method == _BY_GROUPS:
        device = pipe._execution_device
        for model in _models(pipe):
            _set_groups_aside(model, undo)
        return device
    device = pipe._offload_device
    for hook in pipe._all_hooks:
        hook.offload()
    pipe.remove_all_hooks()
    undo.callback(_enable_again, weakref.ref(pipe), method, device)
    return device


_BY_GROUPS = "enable_group_offload"

_TRACED, _TRACING = "layer_execution_tracker", "lazy_prefetch_group_offloading"
"""Hooks of diffusers with which the first call learns the order of groups, on what moves one and on the model."""


def _models(pipe: Any) -> list[Any]:
    return [model for name in MODELS if (model := getattr(pipe, name)) is not None]


def _set_groups_aside(model: Any, undo: ExitStack) -> None:
    """Take group offloading off `model`, its tensors in host memory then, until `undo` is closed.

    The same hooks are put back, with what they know of the order of groups; each moves its group where it waits.
    """
    moved = [(module._diffusers_hook, hook) for module in model.modules() if (hook := group_hook(module)) is not None]
    for group in {id(hook.group): hook.group for _, hook in moved}.values():
        if group.offload_to_disk_path is None:
            group.offload_()  # of an interrupted call
            continue
        group.onload_()
        if group.stream is not None:
            group.stream.synchronize()
        for tensor in group.tensor_to_key:
            tensor.data = tensor.data.to(group.offload_device)
    for registry, _ in moved:
        if (tracing := registry.get_hook(_TRACING)) is not None:
            # Before the others, so that it is put back after them: it looks for them.
            undo.callback(registry.register_hook, tracing, _TRACING)
            registry.remove_hook(_TRACING, recurse=False)
    for registry, hook in moved:
        undo.callback(registry.register_hook, hook, GROUP_HOOK)
        registry.remove_hook(_TRACED, recurse=False)
        registry.remove_hook(GROUP_HOOK, recurse=False)


def _enable_again(reference: weakref.ref[Any], method: str, device: Any) -> None:
    if (pipe := reference()) is not None:
        getattr(pipe, method)(device=device)


def _inputs_on(device: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a forward with their tensors on `device`."""
    import torch

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    return tuple(map(moved, args)), {name: moved(value) for name, value in kwargs.items()}


@dataclass(eq=False)
class _Unit:
    """A part of an encoder that is moved as a whole."""

    module: Any
    whole: bool
    """With its submodules, or only with its own tensors."""
    waiting: list[tuple[Any, Any]] = field(default_factory=list)
    """While it is on the device: parameters and buffers, each with its data in host memory."""
    users: list[int] = field(default_factory=list)
    """Threads that run it now."""

    def tensors(self) -> list[Any]:
        return [*self.module.parameters(recurse=self.whole), *self.module.buffers(recurse=self.whole)]


class _Resident:
    """The units that are on the device."""

    def __init__(self, device: Any, facts: Facts) -> None:
        self._device = device
        self._facts = facts
        self._bytes = 0
        self._lock = Lock()

    def bring(self, unit: _Unit) -> None:
        """Copy `unit` to the device, where no other thread has brought it."""
        with self._lock:
            unit.users.append(get_ident())
            if unit.waiting:
                return
            unit.waiting = [(tensor, tensor.data) for tensor in unit.tensors()]
            for tensor, host in unit.waiting:
                # On a CPU too, so that the same is done everywhere.
                tensor.data = host.to(self._device, copy=True)
                self._bytes += host.nbytes
            self._facts["resident_peak_bytes"] = max(self._facts["resident_peak_bytes"], self._bytes)

    def drop(self, unit: _Unit) -> None:
        """End this thread's use of `unit`, and free its memory on the device where that was the last one."""
        with self._lock:
            if get_ident() in unit.users:
                unit.users.remove(get_ident())
            if unit.users:
                return
            for tensor, host in unit.waiting:
                tensor.data = host
                self._bytes -= host.nbytes
            unit.waiting = []

    def drop_all(self, units: Sequence[_Unit]) -> None:
        """End this thread's use of `units`."""
        for unit in units:
            while get_ident() in unit.users:
                self.drop(unit)


def _units(encoder: Any) -> Iterator[_Unit]:
    """Its blocks, which are the members of its lists of modules, and whatever else holds weights or buffers."""
    from torch.nn import ModuleList

    blocks = [block for part in encoder.modules() if isinstance(part, ModuleList) for block in part]
    nested = {module for block in blocks for module in block.modules() if module is not block}
    outermost = [block for block in blocks if block not in nested]
    inside = {module for block in outermost for module in block.modules()}
    for block in outermost:
        yield _Unit(block, whole=True)
    for module in encoder.modules():
        if module not in inside and (module._parameters or module._buffers):
            yield _Unit(module, whole=False)


def _wait(unit: _Unit, undo: ExitStack) -> None:
    """Move it to host memory."""
    import torch

    for tensor in unit.tensors():
        _place(tensor, torch.device("cpu"), undo)


def _place(tensor: Any, device: Any, undo: ExitStack) -> None:
    """Move `tensor` until `undo` is closed. Data in host memory is kept; data on a device is freed and copied back."""
    before = tensor.data
    if before.device == device:
        return
    tensor.data = before.to(device)
    undo.callback(_bring_back, tensor, before if before.device.type == "cpu" else before.device)


def _bring_back(tensor: Any, where: Any) -> None:
    import torch

    tensor.data = tensor.data.to(where) if isinstance(where, torch.device) else where
