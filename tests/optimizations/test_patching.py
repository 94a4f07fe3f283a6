"""Single objects changed and restored, copies that are as before, and what is on a module named with its remedy."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Event
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook, apply_group_offloading, apply_layerwise_casting
from torch.nn import Dropout, Identity, Linear, ModuleList, Parameter, ReLU

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.patching import (
    Originals,
    defined_by_libraries,
    device_without_hooks,
    group_hook,
    original_class,
    replace_method,
    require_undisturbed,
    serialize_calls,
    set_attribute,
    subclass,
    submodules,
)

CPU, META = torch.device("cpu"), torch.device("meta")


class Adder:
    """Adds to where it starts."""

    def __init__(self, start: int = 0) -> None:
        self.start = start

    def add(self, number: int, *, times: int = 1) -> int:
        return self.start + number * times

    def add_twice(self, number: int) -> int:
        return self.add(number) + self.add(number)

    class Nested:
        """A class by its qualified name alone."""


@pytest.mark.parametrize("taken_off", [False, True])
@pytest.mark.parametrize("before", [{}, {"value": 1}, {"value": None}])
def test_attribute_is_as_before_once_undone(before: dict[str, Any], taken_off: bool) -> None:
    owner = SimpleNamespace(**before)
    with ExitStack() as undo:
        set_attribute(owner, "value", 2, undo)
        assert owner.value == 2
        if taken_off:
            del owner.value
    assert vars(owner) == before


def test_replaced_method_is_that_of_one_object() -> None:
    owner = Adder(10)
    with ExitStack() as undo:
        replace_method(owner, "add", lambda add, args, kwargs: -add(*args, **kwargs), undo)
        assert owner.add(1, times=2) == -12
        assert copy.deepcopy(owner).add(1, times=2) == 12
    assert vars(owner) == {"start": 10}
    assert owner.add(1, times=2) == 12


def hook_of_accelerate(module: Any) -> None:
    module._hf_hook = object()


def layerwise_casting(module: Any) -> None:
    apply_layerwise_casting(module, torch.float16, torch.float32)


def group_offloading(module: Any) -> None:
    apply_group_offloading(module, CPU, CPU, "leaf_level")


def hook_of_a_cache(module: Any) -> None:
    HookRegistry.check_if_exists_or_initialize(module).register_hook(ModelHook(), "cache")


def parametrization(module: Any) -> None:
    torch.nn.utils.parametrize.register_parametrization(module, "bias", Identity())


def forward_of_another(module: Any) -> None:
    module.forward = Linear(2, 2).forward


def another_method(module: Any) -> None:
    module.forward = MethodType(lambda self, numbers: numbers, module)


class WithItsForward(Linear):
    def forward(self, numbers: Any) -> Any:
        return numbers


class WithItsCall(Linear):
    def __call__(self, numbers: Any) -> Any:
        return numbers


def compiled(module: Any) -> None:
    module._compiled_call_impl = module._call_impl  # as `compile` does, which takes long the first time


def give_class(module: Any, kind: type) -> None:
    module.__class__ = kind


HOOK = ("has a forward hook", "remove it (handle.remove())")
OWN_FORWARD = ("has a forward of its own", "take it off (del module.forward)")
OTHERS_CLASS = "whose forward is not that of torch or diffusers"
PUT_BACK = "put back what was there, or load the pipeline again"
OBSTACLES: dict[Callable[[Any], Any], tuple[str, str]] = {
    hook_of_accelerate: ("has hooks of offloading", "take them off (pipe.remove_all_hooks())"),
    layerwise_casting: (
        "has layerwise casting",
        "load the pipeline again without enable_layerwise_casting()",
    ),
    group_offloading: (
        "has group offloading",
        "use accelerate(pipe, 'faithful'), or load it again without enable_group_offload()",
    ),
    hook_of_a_cache: ("has hooks of a cache", "take it off (pipe.transformer.disable_cache())"),
    lambda module: module.register_forward_hook(lambda *_: None): HOOK,
    lambda module: module.register_forward_pre_hook(lambda *_: None): HOOK,
    forward_of_another: OWN_FORWARD,
    another_method: OWN_FORWARD,
    lambda module: setattr(module, "forward", functools.partial(Linear.forward, module)): OWN_FORWARD,
    compiled: ("is compiled", "load the pipeline again without compiling it"),
    lambda module: give_class(module, WithItsForward): (f"is a WithItsForward {OTHERS_CLASS}", PUT_BACK),
    lambda module: give_class(module, WithItsCall): (f"is a WithItsCall {OTHERS_CLASS}", PUT_BACK),
}


def refusal(*modules: tuple[str, Any], replaced: bool = False) -> str:
    with pytest.raises(InvalidInput) as caught:
        require_undisturbed(modules, "the engine", replaced=replaced)
    return str(caught.value)


@pytest.mark.parametrize("disturb", OBSTACLES)
def test_what_is_on_a_module_is_named_with_its_remedy(disturb: Callable[[Any], Any]) -> None:
    module, (what, remedy) = Linear(2, 2), OBSTACLES[disturb]
    disturb(module)
    assert refusal(("first", Linear(2, 2)), ("second", module)) == (
        f"second {what}, which the engine would ignore; {remedy}, then accelerate again."
    )


def test_parametrized_tensor_is_named_with_the_code_that_takes_it_off() -> None:
    module = Linear(2, 2)
    parametrization(module)
    assert refusal(("layer", module)) == (
        "layer.bias has a parametrization, which the engine would ignore; take it off "
        '(torch.nn.utils.parametrize.remove_parametrizations(module, "bias")), then accelerate again.'
    )


def test_what_changes_nothing_is_no_obstacle() -> None:
    with_registry, with_its_own = Linear(2, 2), Linear(2, 2)
    HookRegistry.check_if_exists_or_initialize(with_registry)
    with_its_own.forward = with_its_own.forward  # type: ignore[method-assign]
    require_undisturbed([("plain", Linear(2, 2)), ("registry", with_registry), ("its own", with_its_own)], "the engine")


def test_forward_that_was_given_must_be_there() -> None:
    module = Linear(2, 2)
    with ExitStack() as undo:
        replace_method(module, "forward", lambda forward, args, kwargs: forward(*args, **kwargs), undo)
        require_undisturbed([("layer", module)], "the engine")
        require_undisturbed([("layer", module)], "the engine", replaced=True)
    require_undisturbed([("layer", module)], "the engine")
    assert refusal(("layer", module), replaced=True) == (
        "The forward that the engine gave to layer was taken off; revert the acceleration, then accelerate again."
    )


def test_submodules_are_those_of_torch_each_once() -> None:
    shared = Linear(2, 2)
    root = ModuleList([shared, ModuleList([shared, Dropout()]), ReLU()])
    root.register_module("none", None)
    found = submodules(root)
    assert len(found) == 5
    assert set(found) == set(root.modules())


class OnCuda(Identity):
    """There is no GPU where tests run."""

    def parameters(self, recurse: bool = True) -> Any:
        yield SimpleNamespace(device=torch.device("cuda"))


@pytest.mark.parametrize(
    ("parts", "device"),
    [
        ({"b": Linear(1, 1), "a": Linear(1, 1, device="meta")}, META),
        ({"b": Linear(1, 1, device="meta"), "a": Linear(1, 1)}, CPU),
        ({"a": Linear(1, 1), "b": OnCuda(), "c": Linear(1, 1, device="meta")}, torch.device("cuda")),
        ({"a": "no module", "b": Linear(1, 1), "c": None}, CPU),
        ({"a": Linear(1, 1), "b": Identity()}, None),
        ({"a": None}, None),
    ],
)
def test_device_is_of_the_first_part_that_is_on_one(parts: dict[str, Any], device: torch.device | None) -> None:
    """The first by name, as in diffusers; of parts without weights diffusers is asked."""
    assert device_without_hooks(SimpleNamespace(config={**parts, "not_there": 1}, **parts)) == device


@pytest.mark.parametrize("add_hook", [hook_of_accelerate, group_offloading])
def test_hooks_anywhere_leave_the_device_to_diffusers(add_hook: Callable[[Any], None]) -> None:
    part = ModuleList([Linear(1, 1), ModuleList([Linear(1, 1)])])
    pipe = SimpleNamespace(config={"part": 1}, part=part)
    hook_of_a_cache(part[0])  # which moves nothing
    assert device_without_hooks(pipe) == CPU
    add_hook(part[1][0])
    assert device_without_hooks(pipe) is None


def test_group_hook_is_found_among_others() -> None:
    plain, cached, grouped = Linear(1, 1), Linear(1, 1), Linear(1, 1)
    hook_of_a_cache(cached)
    group_offloading(grouped)
    assert group_hook(plain) is group_hook(cached) is None
    assert group_hook(grouped).group is not None


def test_code_of_libraries_is_told_by_its_file() -> None:
    @functools.wraps(Linear.forward)
    def wrapped(*args: Any) -> Any:
        return Linear.forward(*args)

    assert defined_by_libraries(Linear.forward)
    assert defined_by_libraries(HookRegistry.register_hook)
    for other in (wrapped, pytest.raises, len, functools.partial(Linear.forward)):
        assert not defined_by_libraries(other)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda owner: pickle.loads(pickle.dumps(owner))])
def test_object_of_a_subclass_is_copied_as_what_it_was(duplicate: Callable[[Any], Any]) -> None:
    owner = Adder(10)
    cls: Any = subclass(Adder, {"add": lambda self, number: 0})
    owner.__class__ = cls
    assert (owner.add(1), isinstance(owner, Adder)) == (0, True)
    for original in (Adder, Adder.Nested):
        for name in ("__module__", "__name__", "__qualname__", "__doc__"):
            assert getattr(subclass(original, {}), name) == getattr(original, name)
    assert original_class(cls) is original_class(Adder) is Adder
    twin = duplicate(owner)
    assert type(twin) is Adder
    assert twin.add(1) == 11


def test_calls_of_an_object_wait_for_each_other() -> None:
    begun, go_on = Event(), Event()
    order: list[str] = []

    class Stands(Adder):
        def stand(self) -> None:
            begun.set()
            assert go_on.wait(20)
            order.append("first")

        def follow(self, word: str, *, mark: str) -> str:
            order.append(word + mark)
            return word

        def free(self) -> None:
            order.append("free")

    owner, first, second = Stands(), ExitStack(), ExitStack()
    names = ("stand", "follow", "add", "add_twice", "not_there")
    serialize_calls(owner, names, first)
    serialize_calls(owner, names, second)
    assert owner.add_twice(2) == 4  # calls another of them
    first.close()
    with ThreadPoolExecutor(2) as threads:
        standing = threads.submit(owner.stand)
        assert begun.wait(20)
        following = threads.submit(owner.follow, "second", mark="!")
        owner.free()
        go_on.set()
        standing.result()
        assert following.result() == "second"
    assert order == ["free", "first", "second!"]
    assert type(owner) is not Stands
    second.close()
    assert type(owner) is Stands
    assert not hasattr(owner, "not_there")
    serialize_calls(owner, names, first)
    assert type(owner) is not Stands
    first.close()
    assert type(owner) is Stands


def test_object_that_is_gone_needs_no_undo() -> None:
    undo = ExitStack()
    serialize_calls(Adder(), ("add",), undo)
    undo.close()


class Changed(Linear):
    """With what an acceleration changes on a module."""

    def __init__(self) -> None:
        super().__init__(2, 3)
        self.child = Linear(2, 2, bias=False)
        self.register_buffer("counts", torch.arange(3))
        self.note: Any = "as loaded"
        self.taken_off = None
        self.settings = {"steps": 4}
        self.options: Any = {"fast": True}
        self.double()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copy_of_a_changed_module_is_what_it_was(duplicate: Callable[[Any], Any]) -> None:
    module: Any = Changed()
    numbers = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    strides = {name: tensor.stride() for name, tensor in module.state_dict().items()}
    keys, (child, settings) = list(vars(module)), (module.child, module.settings)
    originals = Originals([module])
    module.child = ReLU()
    module.note, module.settings, module.options = "changed", {"steps": 8}, None
    module.added, module.added_for_later = lambda: None, None
    del module.taken_off
    module.register_forward_hook(lambda *_: None)
    module.weight.data = module.weight.data.t().contiguous().t()
    module.bias.data, module.counts = torch.cat([module.bias.data] * 2)[:3], torch.arange(6)[:3]
    with ExitStack() as undo:
        originals.give_to_copies(undo)
        module.later = "by the user"
        twin = duplicate(module)
        assert "__getstate__" in vars(module)
    assert "__getstate__" not in vars(module)
    assert set(vars(twin)) == {*keys, "later"}
    assert (twin.note, twin.taken_off, twin.later) == ("as loaded", None, "by the user")
    assert (twin.settings, twin.options) == (settings, {"fast": True})
    assert type(twin.child) is Linear
    assert twin.child is not child
    assert not twin._forward_hooks
    for name, tensor in twin.state_dict().items():
        assert torch.equal(tensor, numbers[name])
        assert tensor.dtype == numbers[name].dtype
        assert tensor.stride() == strides[name]
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    assert isinstance(twin.weight, Parameter)
    assert twin.weight.requires_grad
    assert not isinstance(twin.counts, Parameter)


def test_copy_of_an_unchanged_module_is_made_as_ever() -> None:
    module, other = Changed(), Linear(1, 1)
    originals = Originals([module, other])
    other.note = "changed"  # type: ignore[assignment]
    with ExitStack() as undo:
        originals.give_to_copies(undo)
        assert "__getstate__" not in vars(module)
        assert "__getstate__" in vars(other)
        assert "note" not in vars(copy.deepcopy(other))


def test_frozen_and_missing_tensors_stay_so_in_copies() -> None:
    module = Linear(2, 3, bias=False).requires_grad_(requires_grad=False)
    module.register_buffer("missing", None)
    before = module.weight.data.clone()
    originals = Originals([module])
    module.weight.data = module.weight.data.t().contiguous().t()
    with ExitStack() as undo:
        originals.give_to_copies(undo)
        twin = copy.deepcopy(module)
    assert twin.bias is None
    assert twin.missing is None
    assert not twin.weight.requires_grad
    assert twin.weight.is_contiguous()
    assert torch.equal(twin.weight, before)


def test_tied_weights_of_changed_modules_stay_tied_in_copies() -> None:
    first, second = Linear(2, 2), Linear(2, 2)
    second.weight = first.weight
    both = ModuleList([first, second])
    originals = Originals([both])
    for module in both:
        module.note = "changed"  # type: ignore[assignment]
    with ExitStack() as undo:
        originals.give_to_copies(undo)
        one, other = copy.deepcopy(both)
    assert one.weight is other.weight


def test_weights_that_were_not_loaded_yet_are_not_in_copies_either() -> None:
    module = Linear(2, 2, bias=False, device="meta")
    originals = Originals([module])
    module.weight = Parameter(torch.ones(2, 2))
    with ExitStack() as undo:
        originals.give_to_copies(undo)
        module.register_buffer("later", torch.ones(1))
        twin: Any = copy.deepcopy(module)
    assert twin.weight.device == META
    assert twin.later.device == CPU


class StoresItsWay(Linear):
    def __getstate__(self) -> dict[str, Any]:
        left_out = ("training", "note", "__getstate__")
        return {name: value for name, value in vars(self).items() if name not in left_out}


def test_state_that_a_class_makes_itself_is_that_of_copies() -> None:
    module = StoresItsWay(2, 2)
    originals = Originals([module])
    module.note = "added"  # type: ignore[assignment]
    with ExitStack() as undo:
        originals.give_to_copies(undo)
        assert not {"training", "note"} & set(vars(copy.deepcopy(module)))
