"""The operations of one step of a 1024x1024 edit at real sizes, on random inputs, which `kernel_check.py` times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kontext_fast.engine.flops import FLUX_KONTEXT_DEV
from kontext_fast.engine.kernels.registry import Inputs, Operation, kernels
from kontext_fast.engine.ops import JointQKV, Linear, Ops, Precision, quantize_joint
from kontext_fast.engine.weights import ROUNDINGS

DEVICE = "cuda"
W, M = FLUX_KONTEXT_DEV.width, FLUX_KONTEXT_DEV.mlp_width
HEADS, CHANNELS = FLUX_KONTEXT_DEV.heads, FLUX_KONTEXT_DEV.head_dim


@dataclass(frozen=True)
class Draw:
    """Random inputs: the same numbers in either dtype, and views that are surrounded by NaN."""

    dtype: torch.dtype
    generator: torch.Generator

    def __call__(self, *shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=self.generator, device=DEVICE)
        numbers[..., :: max(7, shape[-1] // 3)] *= 30
        return numbers.bfloat16().to(self.dtype)

    def window(self, batch: int, rows: int, width: int) -> Tensor:
        """[batch, rows, width], a view into a larger buffer."""
        whole = torch.full((batch, rows + 5, width + 64), torch.nan, dtype=self.dtype, device=DEVICE)
        view = whole[:, 3 : 3 + rows, 32 : 32 + width]
        view.copy_(self(batch, rows, width))
        return view


@dataclass(frozen=True)
class Stage:
    """One operation of a step at its real size; `moved` is its least memory traffic in bytes, `flop` its work."""

    name: str
    times: int
    """Per step."""
    moved: float
    flop: float
    inputs: Callable[[], Callable[[], object]]
    """Draws inputs and returns the call on them."""


def stages(ops: Ops, text: int, image: int, precision: Precision) -> Iterator[Stage]:
    """The stages of a step with these numbers of text and image tokens, of which half are the reference's.

    `ops` quantize to `precision`, if at all.
    """
    draw = Draw(torch.bfloat16, torch.Generator(DEVICE).manual_seed(0))
    total, outputs = text + image, image // 2
    doubles, singles = FLUX_KONTEXT_DEV.double_blocks, FLUX_KONTEXT_DEV.single_blocks

    def elementwise(rows: int, where: str) -> Iterator[Stage]:
        inputs = Inputs(FLUX_KONTEXT_DEV, 1, rows, draw)
        ours = (kernel for kernel in kernels().values() if not kernel.is_product)
        for operation in (operation for kernel in ours for operation in kernel.operations):
            times = {
                "single": operation.per_single * singles + operation.per_step - operation.for_outputs,
                "output": operation.for_outputs,
            }.get(where, operation.per_double * doubles)
            for quantizes in operation.variants(precision)[-1:] if times else ():
                moved = rows * operation.bytes_per_row(FLUX_KONTEXT_DEV, 2, 1 if quantizes else 2)
                call = partial(_bound, operation, inputs, ops, quantizes)
                flop = 2 * rows * W * M if "linear_gelu" in operation.name else 0
                yield Stage(f"{operation.name} {where}", times, moved, flop, call)

    def products(rows: int, where: str, times: int, widths: list[tuple[int, int]]) -> Iterator[Stage]:
        # Those with a GELU are stages of their own.
        for shared, out in widths:

            def product(shared: int = shared, out: int = out) -> Callable[[], object]:
                x, weight, bias = draw(1, rows, shared), draw(out, shared), draw(out)
                rounded = ROUNDINGS.get(precision, lambda numbers: numbers)
                operand, layer = rounded(x), Linear(rounded(weight), bias)
                return lambda: ops.linear(operand, layer)

            yield Stage(f"linear {shared}x{out} {where}", times, 0, 2 * rows * shared * out, product)

    for rows, where in ((image, "image"), (text, "text")):
        yield from elementwise(rows, where)
        yield from products(rows, where, doubles, [(W, 3 * W), (W, W), (M, W)])
    yield from products(total, "single", singles, [(W, 3 * W)])
    for rows, where, times in ((total, "single", singles - 1), (outputs, "output", 1)):
        yield from elementwise(rows, where)
        yield from products(rows, where, times, [(W + M, W)])

    def attend(queries: slice) -> Callable[[], object]:
        joint = joint_qkv(ops, total).only(queries)
        return lambda: ops.attention(joint)

    every, read = slice(0, total), slice(text, text + outputs)
    yield Stage("attention", doubles + singles - 1, 0, 4 * total * total * W, partial(attend, every))
    yield Stage("attention output", 1, 0, 4 * outputs * total * W, partial(attend, read))


def joint_qkv(ops: Ops, tokens: int) -> JointQKV:
    """Normal numbers of one sample, as the kernel of attention of `ops` reads them."""
    numbers = torch.randn(3, 1, tokens, HEADS, CHANNELS, device=DEVICE, dtype=torch.bfloat16)
    return quantize_joint(*numbers) if ops.attention_kernel.quantized else JointQKV(*numbers)


def _bound(operation: Operation, inputs: Inputs, ops: Ops, quantizes: bool) -> Callable[[], object]:
    call = operation.bind(inputs)
    return lambda: call(ops, quantizes)
