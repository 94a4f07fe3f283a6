"""Replaces attributes, methods and classes of single objects; the undo restores them, `vars(owner)` included.

Deep copies and pickles of changed modules are what the modules were before: unaccelerated, with weights of their own on
the original device. What accelerating changes on a module (a forward, hooks, a submodule, where a weight lies) means
nothing in a copy, and closures cannot be pickled.

What runs in place of modules must first know that these are what their classes say: a hook or a patch on a module that
does not run would be ignored without a word. `require_undisturbed` proves it for every technique.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from threading import Lock, RLock
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

from kontext_fast.errors import InvalidInput

_ABSENT = object()

_ORIGINAL = "_kontext_fast_original"

_TABLES = ("_parameters", "_buffers")


def keep_attribute(owner: Any, name: str, undo: ExitStack) -> None:
    """Have `undo` restore the instance attribute `name` of `owner`, or delete it if there is none now."""
    before = vars(owner).get(name, _ABSENT)

    def restore() -> None:
        if before is not _ABSENT:
            setattr(owner, name, before)
        elif name in vars(owner):
            delattr(owner, name)

    undo.callback(restore)


def set_attribute(owner: Any, name: str, value: Any, undo: ExitStack) -> None:
    """Set the instance attribute `name` of `owner` until `undo` is closed."""
    keep_attribute(owner, name, undo)
    setattr(owner, name, value)


Replacement = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""(original, bound; args; kwargs) -> the result."""


class _OnlyOn:
    """The function of a bound method: the replacement for its owner, the original for copies of it."""

    def __init__(self, owner: Any, original: Callable[..., Any], replacement: Replacement) -> None:
        self._owner = weakref.ref(owner)
        self._original = original
        self._replacement = replacement

    def __call__(self, owner: Any, *args: Any, **kwargs: Any) -> Any:
        bound = MethodType(self._original, owner)
        if owner is not self._owner():
            return bound(*args, **kwargs)
        return self._replacement(bound, args, kwargs)


def replace_method(owner: Any, name: str, replacement: Replacement, undo: ExitStack) -> None:
    """Replace the method `name` of `owner` until `undo` is closed."""
    original = getattr(owner, name).__func__
    set_attribute(owner, name, MethodType(_OnlyOn(owner, original, replacement), owner), undo)


def require_undisturbed(modules: Iterable[tuple[str, Any]], by: str, *, replaced: bool = False) -> None:
    """Prove of `modules`, (name, module), that calling each would run the forward that torch or diffusers defines.

    `by` is what runs in their place; it may have `replaced` their forwards itself. Raises InvalidInput, with a remedy,
    that names the first one of which hooks, a forward of its own, a parametrization, a compilation or a class of
    somebody else's would be ignored. Hooks on all modules of the process, which torch keeps for debugging, are let be.
    """
    for name, module in modules:
        if (obstacle := _obstacle(name, module)) is not None:
            what, remedy = obstacle
            raise InvalidInput(f"{what}, which {by} would ignore; {remedy}, then accelerate again.")
        if replaced and "forward" not in vars(module):
            raise InvalidInput(
                f"The forward that {by} gave to {name} was taken off; revert the acceleration, then accelerate again."
            )


GROUP_HOOK = "group_offloading"

_DIFFUSERS_HOOKS = (
    ("layerwise_casting", "layerwise casting", "load the pipeline again without enable_layerwise_casting()"),
    (
        GROUP_HOOK,
        "group offloading",
        "use accelerate(pipe, 'faithful'), or load it again without enable_group_offload()",
    ),
)
"""Hooks of diffusers that nothing takes off again: name, what they are, and the remedy."""


def submodules(root: Any) -> list[Any]:
    """`root` and every module in it, each once, in no particular order; several times as fast as `root.modules()`."""
    modules, known = [root], {root}
    for module in modules:
        for child in module._modules.values():
            if child is not None and child not in known:
                known.add(child)
                modules.append(child)
    return modules


def device_without_hooks(pipe: Any) -> Any:
    """The device that a diffusers pipeline calls its `_execution_device`; None where hooks may say another one.

    A millisecond at full size where diffusers, which looks for hooks with `hasattr`, takes up to ten.
    """
    from torch.nn import Module

    parts = [part for name in sorted(pipe.config) if isinstance(part := vars(pipe).get(name), Module)]
    tables = [vars(module) for part in parts for module in submodules(part)]
    if any("_hf_hook" in own or _has_group_hook(own) for own in tables):
        return None
    firsts = [next(part.parameters(), None) for part in parts]
    devices = [first.device for first in firsts if first is not None]
    if not devices or len(devices) < len(parts):
        return None
    return next((device for device in devices if device.type not in ("cpu", "meta")), devices[0])


def _has_group_hook(own: dict[str, Any]) -> bool:
    return "_diffusers_hook" in own and GROUP_HOOK in own["_diffusers_hook"].hooks


def group_hook(module: Any) -> Any:
    """The hook of diffusers that moves a group of layers when `module` runs, or None."""
    return getattr(vars(module).get("_diffusers_hook"), "hooks", {}).get(GROUP_HOOK)


def has_another_forward(module: Any) -> bool:
    """Whether `module` has a forward beside that of its class, which hooks leave on it when they are taken off."""
    forward = vars(module).get("forward")
    its_own = getattr(forward, "__func__", None) is type(module).forward and forward.__self__ is module
    return forward is not None and not its_own


def _obstacle(name: str, module: Any) -> tuple[str, str] | None:
    """What is on a module beside its class, and how to take it off."""
    own, kind = vars(module), type(module)
    if "_hf_hook" in own:
        return f"{name} has hooks of offloading", "take them off (pipe.remove_all_hooks())"
    # diffusers leaves an empty registry of hooks behind after every call.
    hooks = getattr(own.get("_diffusers_hook"), "hooks", {})
    for hook, what, remedy in _DIFFUSERS_HOOKS:
        if hook in hooks:
            return f"{name} has {what}", remedy
    if hooks:
        return f"{name} has hooks of a cache", "take it off (pipe.transformer.disable_cache())"
    if "parametrizations" in module._modules:
        tensor = next(iter(module._modules["parametrizations"]))
        return f"{name}.{tensor} has a parametrization", (
            f'take it off (torch.nn.utils.parametrize.remove_parametrizations(module, "{tensor}"))'
        )
    if module._forward_hooks or module._forward_pre_hooks:
        return f"{name} has a forward hook", "remove it (handle.remove())"
    if has_another_forward(module) and not isinstance(getattr(own["forward"], "__func__", None), _OnlyOn):
        return f"{name} has a forward of its own", "take it off (del module.forward)"
    if module._compiled_call_impl is not None:
        return f"{name} is compiled", "load the pipeline again without compiling it"
    if not (defined_by_libraries(kind.forward) and defined_by_libraries(kind.__call__)):
        return f"{name} is a {kind.__name__} whose forward is not that of torch or diffusers", (
            "put back what was there, or load the pipeline again"
        )
    return None


@functools.cache
def _library_folders() -> tuple[str, ...]:
    import diffusers
    import torch

    return tuple(os.path.dirname(str(library.__file__)) + os.sep for library in (torch, diffusers))


def defined_by_libraries(function: Any) -> bool:
    """Whether the code of `function` is in torch or diffusers; names would be copied by `functools.wraps`."""
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename.startswith(_library_folders())


def subclass(original: Any, body: dict[str, Any]) -> type:
    """A class that goes by the name of `original`, whose instances are pickled and copied deeply as `original`."""

    def reduce_as_original(self: Any, protocol: Any) -> Any:
        # Pickle looks a class up by its name, which is that of the original.
        _, _, *state = original.__reduce_ex__(self, protocol)
        return (object.__new__, (original,), *state)

    named = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__reduce_ex__": reduce_as_original,
        _ORIGINAL: original,
    }
    cls: type = type(original)(original.__name__, (original,), {**named, **body})
    return cls


def original_class(cls: type) -> Any:
    """The class that `subclass` made `cls` of; or `cls` itself."""
    return vars(cls).get(_ORIGINAL, cls)


_serialized: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""How many users want the calls of an object one at a time."""

_serializing = Lock()


def serialize_calls(owner: Any, names: Sequence[str], undo: ExitStack) -> None:
    """Have calls of the methods `names` of `owner` wait for each other, until every `undo` passed for it is closed."""
    with _serializing:
        _serialized[owner] = _serialized.get(owner, 0) + 1
        if _serialized[owner] == 1:
            lock = RLock()
            body = {name: _locked(lock, getattr(type(owner), name)) for name in names if hasattr(type(owner), name)}
            owner.__class__ = subclass(type(owner), body)
    undo.callback(_serialize_no_longer, weakref.ref(owner))


def _serialize_no_longer(reference: weakref.ref[Any]) -> None:
    owner = reference()
    if owner is None:
        return
    with _serializing:
        _serialized[owner] -= 1
        if not _serialized[owner]:
            del _serialized[owner]
            owner.__class__ = original_class(type(owner))


def _locked(lock: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def locked(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return method(*args, **kwargs)

    return locked


class Originals:
    """How modules are now, before something changes them."""

    def __init__(self, parts: Iterable[Any]) -> None:
        """`parts`: torch modules, whose submodules count too."""
        modules = {id(module): module for part in parts for module in part.modules()}
        self._modules = list(modules.values())
        self._states = [_state(module) for module in self._modules]
        self._places = [_places(module) for module in self._modules]

    def give_to_copies(self, undo: ExitStack) -> None:
        """Have copies of the modules be what they were, until `undo` is closed. Call it after the changes.

        What is changed later, by the user, is in the copies.
        """
        for module, state, places in zip(self._modules, self._states, self._places, strict=True):
            now = _state(module)
            changed = {name: state.get(name, _ABSENT) for name in state | now if not _same(name, state, now)}
            if changed or _places(module) != places:
                set_attribute(module, "__getstate__", _getstate(module, changed, places), undo)


def _state(module: Any) -> dict[str, Any]:
    """The attributes of a module, its tables as they are now; without its tensors, which stay the same objects."""
    return {name: _shallow(value) for name, value in vars(module).items() if name not in _TABLES}


def _shallow(value: Any) -> Any:
    """A copy of a table of a module; of a configuration, which is a dictionary of a class of its own, the same."""
    return value.copy() if type(value) in (dict, OrderedDict) else value


def _same(name: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    old, new = before.get(name, _ABSENT), now.get(name, _ABSENT)
    if isinstance(old, dict) and isinstance(new, dict):
        return list(old) == list(new) and all(old[key] is new[key] for key in old)
    return old is new


def _places(module: Any) -> dict[tuple[str, str], Any]:
    """Device and strides of each tensor of a module itself."""
    return {
        (table, name): (tensor.device, tensor.stride())
        for table in _TABLES
        for name, tensor in vars(module)[table].items()
        if tensor is not None
    }


def _getstate(module: Any, changed: dict[str, Any], places: dict[tuple[str, str], Any]) -> Callable[[], Any]:
    """`__getstate__` of `module` without what was `changed`, its tensors in their original `places`."""

    def original_state() -> dict[str, Any]:
        kind: Any = type(module)
        state: dict[str, Any] = dict(kind.__getstate__(module))
        state.pop("__getstate__", None)
        for name, value in changed.items():
            if value is _ABSENT:
                state.pop(name, None)
            else:
                state[name] = _shallow(value)
        for table in _TABLES:
            state[table] = {
                name: tensor if tensor is None else _in_place(tensor, places.get((table, name)))
                for name, tensor in state[table].items()
            }
        return state

    return original_state


def _in_place(tensor: Any, place: Any) -> Any:
    """`tensor`, or a copy of it in memory of its own on the device and with the strides of `place`."""
    import torch

    alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    if place is None or (alone and (tensor.device, tensor.stride()) == place):
        return tensor
    device, strides = place
    own = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=device).copy_(tensor.data)
    return torch.nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else own
