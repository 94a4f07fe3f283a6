"""What a fused kernel says about itself: for compiling it ahead, checking it, timing it and counting its bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kontext_fast.engine.ops import JointQKV, Ops, Precision, Quantized, Rope

if TYPE_CHECKING:
    from kontext_fast.engine.flops import Dimensions, Tokens
    from kontext_fast.records.schema import StepKind

_ROWS = 16
"""Of what is compiled ahead: kernels are compiled for no number of rows."""


@dataclass(frozen=True)
class Inputs:
    """Where an operation gets its inputs from: B samples of `rows` tokens of a model of these dimensions."""

    dimensions: Dimensions
    batch: int
    rows: int
    draw: Callable[..., Tensor]
    """A tensor of the shape given, in the dtype and on the device of all inputs."""
    draw_view: Callable[[int, int, int], Tensor] | None = None
    """[B, rows, K], a view into a larger buffer; None: what `draw` gives."""

    def stream(self, width: int | None = None) -> Tensor:
        """[B, rows, `width`], W by default; a view, where there are views."""
        return (self.draw_view or self.draw)(self.batch, self.rows, width or self.dimensions.width)

    def vectors(self, count: int) -> Sequence[Tensor]:
        """`count` vectors [B, W], views of one."""
        return self.draw(self.batch, count * self.dimensions.width).chunk(count, -1)

    def rope(self) -> Rope:
        """Of every row."""
        angles = self.draw(self.rows, self.dimensions.head_dim // 2).float()
        return Rope(angles.cos(), angles.sin())

    def static(self) -> Tensor:
        """[3, B] scales of an MLP that hold what is drawn, each at 16 bytes."""
        scales = self.draw(1).new_tensor([64.0, 2.0, 0.5], dtype=torch.float32)
        return scales[:, None, None].repeat(1, self.batch, 4)[..., 0]

    def joint(self, rows: int, *, quantize: bool = False) -> JointQKV:
        """Buffers of `rows` tokens, not yet written, and where they are e4m3 a scale that holds any head."""
        like = self.draw(1)
        shape = 3, self.batch, rows, self.dimensions.heads, self.dimensions.head_dim
        query, key, value = torch.empty(
            shape, dtype=torch.float8_e4m3fn if quantize else like.dtype, device=like.device
        )
        return JointQKV(query, key, value, like.new_full(shape[:2], 4.0, dtype=torch.float32) if quantize else None)


Call = Callable[[Ops, bool], Sequence[Tensor | Quantized]]
"""An operation on inputs that were drawn: given who computes and whether to quantize, all that it wrote."""


@dataclass(frozen=True)
class Operation:
    """What a kernel stands in for: an operation of `engine.ops.Ops`, and how a step uses it."""

    name: str
    bind: Callable[[Inputs], Call]
    bytes_per_row: Callable[[Dimensions, int, int], int] = lambda *_: 0
    """Fewest bytes that one call moves, given the bytes of a number that is read and of one that is written."""
    per_double: int = 0
    """Calls in a double block, each of them for both streams."""
    per_single: int = 0
    per_step: int = 0
    """Calls for all tokens besides those."""
    for_outputs: int = 0
    """Of all calls, those for tokens with an output only: in the last single block and after it."""
    quantizes: Mapping[Precision, tuple[bool, ...]] = field(kw_only=True)
    """By precision of a step that calls it, whether it quantizes its result; both where some calls do."""
    static: bool = False
    """Whether its scales are known before, as those of MLPs in float8 are where a product can round what it gives."""
    for_attention: bool = False
    """Whether it writes what attention reads: it quantizes where the kernel of attention is quantized, which `auto`
    never is."""

    def variants(self, precision: Precision) -> tuple[bool, ...]:
        """Whether a step in that precision has it quantize."""
        return (False,) if self.for_attention else self.quantizes.get(precision, ())

    def calls(self, dimensions: Dimensions) -> int:
        """In a step."""
        of_blocks = self.per_double * dimensions.double_blocks + self.per_single * dimensions.single_blocks
        return of_blocks + self.per_step


@dataclass(frozen=True)
class Kernel:
    """A public value of this type in a module of this package is a kernel."""

    name: str
    functions: tuple[Any, ...]
    """Everything it launches; nothing, where a library does."""
    operations: tuple[Operation, ...] = ()
    """None for a kernel that no step launches."""
    is_product: bool = False
    """Whether matrix units bound it, and not memory."""


@cache
def kernels() -> Mapping[str, Kernel]:
    """Every kernel by name. Raises KontextError as `discovery.values` does."""
    from kontext_fast import discovery
    from kontext_fast.engine import kernels as package

    return discovery.values(package, Kernel, "kernel")


def precompile_calls(
    ops: Ops,
    dimensions: Dimensions,
    dtype: torch.dtype,
    device: torch.device,
    *,
    precision: Precision,
    quantize_attention: bool = False,
) -> Sequence[Callable[[], object]]:
    """Calls that may run in any order and at once; each compiles one kernel of a step, if that was never done before.

    What compiles here is what a step of any size runs. `quantize_attention` is whether attention is in float8.
    """
    inputs = Inputs(dimensions, 1, _ROWS, partial(torch.zeros, dtype=dtype, device=device))
    return [
        partial(_run, ops, operation, inputs, variant)
        for kernel in kernels().values()
        for operation in kernel.operations
        if (ops.has_static_scales(device) if operation.static else kernel.functions and operation.calls(dimensions))
        for variant in ((quantize_attention,) if operation.for_attention else operation.variants(precision))
    ]


def _run(ops: Ops, operation: Operation, inputs: Inputs, variant: bool) -> None:
    operation.bind(inputs)(ops, variant)


def step_bytes(
    dimensions: Dimensions, tokens: Tokens, kind: StepKind, *, precision: Precision, itemsize: int = 2
) -> dict[str, float]:
    """Fewest bytes that the operations between the products move in one pass of one sample, by kernel.

    Every number is read once, in `itemsize` bytes, and written once, in one byte where it is `quantized`. A skipped
    step moves nothing.
    """
    return {} if kind == "skipped" else dict(_step_bytes(dimensions, tokens, precision, itemsize))


def _step_bytes(
    dimensions: Dimensions, tokens: Tokens, precision: Precision, itemsize: int
) -> Iterator[tuple[str, float]]:
    for kernel in kernels().values():
        moved = 0
        for operation in kernel.operations:
            for quantizes in operation.variants(precision)[-1:]:
                each = operation.bytes_per_row(dimensions, itemsize, 1 if quantizes else itemsize)
                rows = tokens.total * operation.calls(dimensions)
                moved += (rows - (tokens.total - tokens.image) * operation.for_outputs) * each
        if moved:
            yield kernel.name, float(moved)
