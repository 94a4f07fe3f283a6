"""Tapes: the same numbers as the call on other inputs, no tensor held longer than needed, and no hidden decision."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kontext_fast.engine.graphs.op_tape import OpTape


def block(x: Tensor, weight: Tensor) -> Tensor:
    """Views, operations in place, several results and constants."""
    hidden = functional.linear(x, weight)
    first, second = hidden.chunk(2, dim=-1)
    buffer = torch.zeros_like(first)
    buffer[:, 1:] = first[:, :-1]
    buffer += torch.arange(buffer.shape[-1])
    values, places = second.max(dim=-1, keepdim=True)
    attended = functional.scaled_dot_product_attention(buffer[None], second[None], first[None])[0]
    return torch.cat((attended * values, places.to(x.dtype)), dim=-1).mul_(0.5)


def test_tape_repeats_a_call_on_other_inputs_and_weights() -> None:
    x, weight = torch.randn(2, 6, 8), torch.randn(10, 8)
    tape, (first,) = OpTape.of(lambda: [block(x, weight)])
    assert torch.equal(first, block(x, weight))
    x.copy_(torch.randn(2, 6, 8))
    weight.mul_(2)
    (again,) = tape.run()
    assert torch.equal(again, block(x, weight))
    assert not torch.equal(again, first)


def test_python_does_not_run_again() -> None:
    x, runs = torch.ones(3), []

    def call() -> list[Tensor]:
        runs.append(1)
        return [x + len(runs)]

    tape, _ = OpTape.of(call)
    assert torch.equal(tape.run()[0], torch.full((3,), 2.0))
    assert len(runs) == 1


def test_output_may_be_an_input_or_a_view_of_it() -> None:
    x = torch.arange(6.0)
    tape, _ = OpTape.of(lambda: [x, x[2:]])
    x += 1
    whole, part = tape.run()
    assert whole is x
    assert torch.equal(part, x[2:])


def test_tape_holds_no_intermediate_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    x, alive = torch.randn(4), []
    intermediate: list[weakref.ref[Tensor]] = []

    def call() -> list[Tensor]:
        once = x + 1
        intermediate.append(weakref.ref(once))
        return [(once * 2).relu()]

    tape, _ = OpTape.of(call)
    assert intermediate[0]() is None
    monkeypatch.setattr(torch.Tensor, "__del__", lambda _: alive.append(1), raising=False)
    tape.run()
    assert len(alive) >= 2


@pytest.mark.parametrize(
    "decide",
    [lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: x * x.sum().item(), lambda x: x if x.sum() > 0 else -x],
    ids=["mask", "nonzero", "item", "branch"],
)
def test_call_that_depends_on_numbers_is_refused(decide: object) -> None:
    x = torch.ones(3)
    with pytest.raises(RuntimeError, match="depends on the numbers"):
        OpTape.of(lambda: [decide(x)])  # type: ignore[operator]
