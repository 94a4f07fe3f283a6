"""The gated residual: a stream plus a gate times an update, in place. Reads two numbers and writes one per channel."""

from __future__ import annotations

from torch import Tensor

from kontext_fast.engine.kernels.language import tl, triton
from kontext_fast.engine.kernels.registry import Call, Inputs, Kernel, Operation
from kontext_fast.engine.kernels.rows import block_of, device_of, options_for, require_dense_rows, row_of
from kontext_fast.engine.ops import PRECISIONS, Ops


def add_gated(stream: Tensor, gate: Tensor, update: Tensor) -> None:
    """Add `gate` [B, W] times `update` [B, rows, W] to `stream` [B, rows, W], rounded once.

    All three may have any strides but a contiguous last dimension.
    """
    for tensor in (stream, gate, update):
        require_dense_rows(tensor)
    batch, rows, width = stream.shape
    block = block_of(width)
    with device_of(stream):
        _add_gated[(rows, batch)](
            stream,
            gate,
            update,
            stream.stride(0),
            stream.stride(1),
            gate.stride(0),
            update.stride(0),
            update.stride(1),
            WIDTH=width,
            BLOCK=block,
            **options_for(block, accesses=2),
        )


@triton.jit
def _add_gated(
    stream: tl.tensor,
    gate: tl.tensor,
    update: tl.tensor,
    stream_batch: tl.tensor,
    stream_row: tl.tensor,
    gate_batch: tl.tensor,
    update_batch: tl.tensor,
    update_row: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    columns = tl.arange(0, BLOCK)
    target = row_of(stream, stream_batch, stream_row)
    gate = row_of(gate, gate_batch, 0)
    source = row_of(update, update_batch, update_row)
    for i in tl.static_range(WIDTH // BLOCK):
        place = i * BLOCK + columns
        before = tl.load(target + place).to(tl.float32)
        added = tl.load(gate + place).to(tl.float32) * tl.load(source + place).to(tl.float32)
        tl.store(target + place, (before + added).to(stream.dtype.element_ty))


def _example(inputs: Inputs) -> Call:
    stream, (_, gate) = inputs.stream(), inputs.vectors(2)
    update = inputs.draw(*stream.shape)

    def call(ops: Ops, _quantize: bool) -> list[Tensor]:
        ops.add_gated(stream, gate, update)
        return [stream if stream._base is None else stream._base]

    return call


KERNEL = Kernel(
    "add_gated",
    functions=(_add_gated,),
    operations=(
        Operation(
            "add_gated",
            _example,
            bytes_per_row=lambda dimensions, read, _written: 3 * dimensions.width * read,
            per_step=2,  # after the last block of each kind; elsewhere it is part of `norm_modulate`
            for_outputs=1,
            quantizes=dict.fromkeys(PRECISIONS, (False,)),
        ),
    ),
)
