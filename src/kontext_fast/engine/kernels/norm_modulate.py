"""The gated residual before a layer norm, the norm without weights, modulation and rounding to float8 in one pass over
a row.

Reads each number once and writes it once; the vectors of the modulation come from cache for all rows but the first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kontext_fast.engine.kernels.int8_rows import rotated_block
from kontext_fast.engine.kernels.language import tl, triton
from kontext_fast.engine.kernels.registry import Call, Inputs, Kernel, Operation
from kontext_fast.engine.kernels.rows import (
    block_of,
    device_of,
    larger_magnitude,
    options_for,
    quantized_like,
    require_dense_rows,
    row_index,
    row_of,
    store_halves,
    store_int8,
    store_quantized,
    store_scaled,
)
from kontext_fast.engine.ops import Ops, Quantized, rotation_group


def norm_modulate(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    *,
    quantize: bool,
    int8: bool = False,
    static: Tensor | None = None,
    gate: Tensor | None = None,
    update: Tensor | None = None,
) -> Tensor | Quantized:
    """(1 + `scale`) times the layer norm of `x` [B, rows, W], plus `shift`; both are [B, W].

    With `gate` [B, W] and `update` [B, rows, W], their product is added to `x` in place before, and rounded as
    `add_gated` does. Quantized to e4m3, with the scales `static` [B] if they are given, or rotated and quantized to
    int8.

    All may have any strides but a contiguous last dimension.
    """
    for tensor in (x, shift, scale, gate, update):
        if tensor is not None:
            require_dense_rows(tensor)
    batch, rows, width = x.shape
    if quantize:
        out, row_scale = quantized_like(x, width, torch.int8 if int8 else torch.float8_e4m3fn)
    else:
        out, row_scale = torch.empty(x.shape, dtype=x.dtype, device=x.device), None
    block = block_of(width)
    with device_of(x):
        _norm_modulate[(rows, batch)](
            x,
            gate,
            update,
            shift,
            scale,
            out,
            row_scale,
            static,
            x.stride(0),
            x.stride(1),
            None if gate is None else gate.stride(0),
            None if update is None else update.stride(0),
            None if update is None else update.stride(1),
            shift.stride(0),
            scale.stride(0),
            None if static is None else static.stride(0),
            eps,
            WIDTH=width,
            BLOCK=block,
            GROUP=rotation_group(width) if quantize and int8 else None,
            **options_for(block, accesses=2),
        )
    return out if row_scale is None else Quantized(out, row_scale, x.dtype)


@triton.jit
def _norm_modulate(
    x: tl.tensor,
    gate: tl.tensor,
    update: tl.tensor,
    shift: tl.tensor,
    scale: tl.tensor,
    out: tl.tensor,
    row_scale: tl.tensor,
    static: tl.tensor,
    x_batch: tl.tensor,
    x_row: tl.tensor,
    gate_batch: tl.tensor,
    update_batch: tl.tensor,
    update_row: tl.tensor,
    shift_batch: tl.tensor,
    scale_batch: tl.tensor,
    static_batch: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    columns = tl.arange(0, BLOCK)
    source = row_of(x, x_batch, x_row)
    shift = row_of(shift, shift_batch, 0)
    scale = row_of(scale, scale_batch, 0)
    if update is not None:
        gate = row_of(gate, gate_batch, 0)
        update = row_of(update, update_batch, update_row)

    blocks: tl.tuple = ()
    total = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(WIDTH // BLOCK):
        place = i * BLOCK + columns
        block = tl.load(source + place).to(tl.float32)
        if update is not None:
            added = tl.load(gate + place).to(tl.float32) * tl.load(update + place).to(tl.float32)
            block = (block + added).to(x.dtype.element_ty).to(tl.float32)
        total += block
        blocks += (block,)
    mean = tl.sum(total, 0) / WIDTH

    # The sum of squares about the mean, not about zero: some channels of a stream are hundreds of times the others.
    squares = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(WIDTH // BLOCK):
        if update is not None:
            stored = blocks[i].to(x.dtype.element_ty)  # which it was already rounded to
            if row_scale is None:
                tl.store(source + i * BLOCK + columns, stored)
            else:
                store_halves(source + i * BLOCK, stored, BLOCK)
        centred = blocks[i] - mean
        squares += centred * centred
    inverse_deviation = tl.rsqrt(tl.sum(squares, 0) / WIDTH + eps)

    row = row_index()
    modulated: tl.tuple = ()
    largest = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(WIDTH // BLOCK):
        factor = 1.0 + tl.load(scale + i * BLOCK + columns).to(tl.float32)
        term = tl.load(shift + i * BLOCK + columns).to(tl.float32)
        block = (blocks[i] - mean) * inverse_deviation * factor + term
        if row_scale is None:
            tl.store(out + row * WIDTH + i * BLOCK + columns, block.to(x.dtype.element_ty))
        else:
            if GROUP is not None:
                block = rotated_block(block, BLOCK, GROUP)
            if static is None:
                largest = larger_magnitude(largest, block)
            modulated += (block,)
    if row_scale is not None:
        if GROUP is not None:
            store_int8(modulated, largest, out + row * WIDTH, row_scale + row, BLOCK)
        elif static is not None:
            by = tl.load(static + tl.program_id(1) * static_batch)
            store_scaled(modulated, by, out + row * WIDTH, row_scale + row, BLOCK)
        else:
            store_quantized(modulated, largest, out + row * WIDTH, row_scale + row, BLOCK)


def _example(inputs: Inputs, static: Tensor | None = None) -> Call:
    x, (shift, scale) = inputs.stream(), inputs.vectors(2)
    return lambda ops, quantize: [
        ops.norm_modulate(x, shift, scale, quantize=quantize, static=static if quantize else None)
    ]


def _example_after_add(inputs: Inputs, static: Tensor | None = None) -> Call:
    stream, (shift, scale, gate) = inputs.stream(), inputs.vectors(3)
    update = inputs.draw(*stream.shape)

    def call(ops: Ops, quantize: bool) -> list[Tensor | Quantized]:
        scales = static if quantize else None
        normed = ops.add_norm_modulate(stream, gate, update, shift, scale, quantize=quantize, static=scales)
        return [stream if stream._base is None else stream._base, normed]

    return call


KERNEL = Kernel(
    "norm_modulate",
    functions=(_norm_modulate,),
    operations=(
        Operation(
            "norm_modulate",
            _example,
            bytes_per_row=lambda dimensions, read, written: dimensions.width * (read + written),
            per_step=2,  # before the first block of each kind
            # The output layer is never quantized, so its norm is not, either.
            quantizes={"bf16": (False,), "fp8": (False, True), "int8": (False, True)},
        ),
        Operation(
            "add_norm_modulate",
            _example_after_add,
            bytes_per_row=lambda dimensions, read, written: dimensions.width * (3 * read + written),
            per_double=2,
            per_single=1,
            per_step=-2,  # nothing is normed in the same pass after the last block of each kind
            quantizes={"bf16": (False,), "fp8": (True,), "int8": (True,)},
        ),
        # Those before MLPs, which the two above count.
        Operation(
            "norm_modulate",
            lambda inputs: _example(inputs, inputs.static()),
            quantizes={"fp8": (True,)},
            static=True,
        ),
        Operation(
            "add_norm_modulate",
            lambda inputs: _example_after_add(inputs, inputs.static()),
            quantizes={"fp8": (True,)},
            static=True,
        ),
    ),
)
