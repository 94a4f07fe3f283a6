"""What a recording depends on: every change of a module is told, and what may do anything is not recorded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import BatchNorm1d, Linear, Parameter, Sequential

from kontext_fast.optimizations.module_state import module_state, reason_against_recording


def root() -> Any:
    modules: Any = Sequential(Linear(2, 2), BatchNorm1d(2)).eval()
    modules.config = SimpleNamespace(_attn_implementation="sdpa")
    return modules


def replace_buffer(modules: Any) -> None:
    modules[1].running_mean = modules[1].running_mean.clone()


CHANGES: list[Callable[[Any], Any]] = [
    lambda modules: modules[0].train(),
    lambda modules: modules.__setitem__(0, Linear(2, 2).eval()),
    lambda modules: modules.__setitem__(0, copy.copy(modules[0])),
    lambda modules: setattr(modules[0], "bias", Parameter(modules[0].bias.data)),
    lambda modules: setattr(modules[0].weight, "data", modules[0].weight.data.clone()),
    lambda modules: setattr(modules[0], "bias", None),
    replace_buffer,
    lambda modules: modules.double(),
    lambda modules: setattr(modules.config, "_attn_implementation", "eager"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_state_differs_after_every_change(change: Callable[[Any], Any]) -> None:
    modules = root()
    before, kept = module_state(modules), list(modules)
    modules[0].weight.data.mul_(2)
    assert module_state(modules) == before
    change(modules)
    assert module_state(modules) != before
    assert len(kept) == 2  # alive, so that no address is given again


def test_state_names_types_and_devices_of_every_tensor() -> None:
    state = module_state(root())
    assert len(state) == 3 + 2 + 5 + 1
    assert [entry[2:] for entry in state if len(entry) == 4][:1] == [(torch.float32, torch.device("cpu"))]
    assert state[-1] == "sdpa"
    assert module_state(Linear(1, 1))[-1] is None


class Foreign(Linear):
    pass


class Wrapped(torch.Tensor):
    pass


REASONS: dict[str, Callable[[Any], Any]] = {
    "hooks": lambda modules: modules[0].register_forward_hook(lambda *_: None),
    "hooks ": lambda modules: modules[1].register_forward_pre_hook(lambda *_: None),
    "a replaced forward": lambda modules: setattr(modules[0], "forward", modules[0].forward),
    "a Foreign of tests": lambda modules: modules.__setitem__(0, Foreign(2, 2).eval()),
    "weights of class Wrapped": lambda modules: modules[1].register_buffer("more", torch.ones(1).as_subclass(Wrapped)),
    "training mode": lambda modules: modules[1].train(),
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_may_do_anything_is_not_recorded(reason: str) -> None:
    modules = root()
    modules[0].bias = None
    modules.register_forward_hook(lambda *_: None)
    modules.register_forward_pre_hook(lambda *_: None)
    modules.forward = modules.forward
    assert reason_against_recording(modules) is None
    REASONS[reason](modules)
    assert reason_against_recording(modules) == reason.strip()
