"""Tapes: the same numbers as the call on other inputs, no tensor held longer than needed, and no hidden decision."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from kontext_fast.engine.graphs import op_tape
from kontext_fast.engine.graphs.op_tape import OpTape
from tests import needs


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


def functions(tape: OpTape) -> list[str]:
    """What the tape runs, by name."""
    return [getattr(op.function, "__name__", str(op.function)) for op in tape._ops]


def test_what_nothing_reads_is_left_out() -> None:
    x, kept = torch.arange(4.0), torch.zeros(4)

    def call() -> list[Tensor]:
        (x * 7).exp()
        kept[1:].copy_(x[:-1] - 1)
        torch.rand(3)  # moves the random numbers after it
        return [x + kept]

    tape, (first,) = OpTape.of(call)
    assert not {"mul.Tensor", "exp.default"} & set(functions(tape))
    assert {"copy_.default", "rand.default"} <= set(functions(tape))
    kept.zero_()
    assert torch.equal(tape.run()[0], first)


def test_bias_of_all_layers_is_copied_once() -> None:
    bias = torch.randn(6, 6, 4)

    def call(bias: Tensor = bias) -> list[Tensor]:
        heads = bias.permute(2, 0, 1)[None]
        return [torch.ones(1, 4, 6, 6) * layer + heads for layer in range(3)]

    tape, _ = OpTape.of(call)
    assert functions(tape).count("clone.default") == 1
    bias.copy_(torch.randn(6, 6, 4))
    for result, expected in zip(tape.run(), call(), strict=True):
        assert torch.equal(result, expected)
        assert result.is_contiguous()


def test_bias_that_changes_between_layers_is_not_copied() -> None:
    bias = torch.randn(6, 6, 4)

    def call() -> list[Tensor]:
        own = bias.clone()
        heads, layers = own.permute(2, 0, 1)[None], []
        for _ in range(3):
            layers.append(torch.ones(1, 4, 6, 6) + heads)
            own *= 2
        return layers

    tape, _ = OpTape.of(call)
    for result, expected in zip(tape.run(), call(), strict=True):
        assert torch.equal(result, expected)


def test_masked_softmax_is_ours_where_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason=needs.TRITON)
    monkeypatch.setattr(op_tape, "has_kernels", lambda _: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # for what Triton imports at its first launch
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, mask = torch.randn(2, 3, 5, 8, device=device), torch.zeros(2, 1, 5, 5, device=device)
    mask[0, :, 2] = -torch.inf

    def call() -> list[Tensor]:
        with sdpa_kernel(SDPBackend.MATH):
            return [functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)]

    tape, _ = OpTape.of(call)
    assert "safe_softmax" in functions(tape)
    x.copy_(torch.randn_like(x))
    # A card sums in another order.
    torch.testing.assert_close(tape.run()[0], call()[0], rtol=0, atol=0 if device == "cpu" else 1e-6)
