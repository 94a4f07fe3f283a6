"""Norm and rotation of query and key, written with the value straight to where attention reads them.

Reads each number once and writes it once, so text and image tokens are never concatenated or transposed. For a kernel
of attention in float8 it writes e4m3, with scales that were known beforehand.
"""

from __future__ import annotations

from torch import Tensor

from kontext_fast.engine.kernels.language import tl, triton
from kontext_fast.engine.kernels.registry import Call, Inputs, Kernel, Operation
from kontext_fast.engine.kernels.rows import block_of, device_of, options_for, require_dense_rows, row_of
from kontext_fast.engine.ops import PRECISIONS, JointQKV, Ops, QKNorm, Quantized, Rope
from kontext_fast.errors import InvalidInput, KontextError


def write_qkv(
    qkv: Tensor, norm: QKNorm, rope: Rope, joint: JointQKV, offset: int, *, writes_value: bool = True
) -> None:
    """As `kontext_fast.engine.ops.Ops.write_qkv`; without the value unless `writes_value`.

    Raises InvalidInput if the channels of a head are no power of two.
    """
    heads, channels = joint.query.shape[-2:]
    if channels & (channels - 1):
        raise InvalidInput(
            f"The fused kernels rotate heads of a power of two channels, these have {channels}; "
            "use a preset without the engine."
        )
    _require_layout(joint, rope)
    require_dense_rows(qkv)
    batch, rows, _ = qkv.shape
    together = block_of(heads * channels) // channels
    with device_of(qkv):
        _write_qkv[(rows, batch, heads // together)](
            qkv[..., joint.first_head * channels :] if joint.first_head else qkv,
            norm.query,
            norm.key,
            rope.cos,
            rope.sin,
            joint.query,
            joint.key,
            joint.value if writes_value else None,
            joint.scales,
            offset,
            qkv.stride(0),
            qkv.stride(1),
            joint.query.stride(0),
            joint.query.stride(1),
            norm.eps,
            WIDTH=qkv.shape[-1] // 3,
            HEADS=together,
            CHANNELS=channels,
            **options_for(together * channels),
        )


def _require_layout(joint: JointQKV, rope: Rope) -> None:
    channels = joint.query.shape[-1]
    strides = joint.query.stride()
    dense = strides[2:] == (channels, 1) and joint.key.stride() == strides and joint.value.stride() == strides
    if not (dense and rope.cos.is_contiguous() and rope.sin.is_contiguous()):
        raise KontextError("A fused kernel was given buffers in another layout; use a preset without the engine.")


@triton.jit
def _turned(
    x: tl.tensor,
    weight: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    eps: tl.tensor,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> tl.tensor:
    """`x` [HEADS, CHANNELS] float32 after RMS norm and rotation."""
    inverse = tl.rsqrt(tl.sum(x * x, 1) / CHANNELS + eps)
    x = x * inverse[:, None] * tl.load(weight + tl.arange(0, CHANNELS)).to(tl.float32)[None, :]
    real, imaginary = tl.split(tl.reshape(x, (HEADS, CHANNELS // 2, 2)))
    turned = tl.join(real * cos - imaginary * sin, imaginary * cos + real * sin)
    return tl.reshape(turned, (HEADS, CHANNELS))


@triton.jit(do_not_specialize=["offset"])
def _write_qkv(
    qkv: tl.tensor,
    query_weight: tl.tensor,
    key_weight: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    scales: tl.tensor,
    offset: tl.tensor,
    qkv_batch: tl.tensor,
    qkv_row: tl.tensor,
    joint_batch: tl.tensor,
    joint_row: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    channels = (tl.program_id(2) * HEADS + tl.arange(0, HEADS))[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    source = row_of(qkv, qkv_batch, qkv_row) + channels
    target = row_of(offset.to(tl.int64) * joint_row, joint_batch, joint_row) + channels
    # All three reads are on their way before the first is used.
    queries = tl.load(source)
    keys = tl.load(source + WIDTH)
    if value is not None:
        values = tl.load(source + 2 * WIDTH)
    angles = tl.program_id(0).to(tl.int64) * (CHANNELS // 2) + tl.arange(0, CHANNELS // 2)[None, :]
    cosines, sines = tl.load(cos + angles), tl.load(sin + angles)
    queries = _turned(queries.to(tl.float32), query_weight, cosines, sines, eps, HEADS, CHANNELS)
    keys = _turned(keys.to(tl.float32), key_weight, cosines, sines, eps, HEADS, CHANNELS)
    if scales is not None:
        # Powers of two, so that multiplying by the reciprocal is dividing.
        scale = scales + tl.program_id(1)
        queries *= 1.0 / tl.load(scale)
        keys *= 1.0 / tl.load(scale + tl.num_programs(1))
        if value is not None:
            values = values.to(tl.float32) * (1.0 / tl.load(scale + 2 * tl.num_programs(1)))
    tl.store(query + target, queries.to(query.dtype.element_ty))
    tl.store(key + target, keys.to(key.dtype.element_ty))
    if value is not None:
        tl.store(value + target, values.to(value.dtype.element_ty))


def _example(inputs: Inputs) -> Call:
    qkv, rope = inputs.stream(3 * inputs.dimensions.width), inputs.rope()
    joints = [inputs.joint(2 * inputs.rows + 4, quantize=quantize) for quantize in (False, True)]
    norm = QKNorm(inputs.draw(inputs.dimensions.head_dim), inputs.draw(inputs.dimensions.head_dim), 1e-6)

    def call(ops: Ops, quantize: bool) -> list[Tensor | Quantized]:
        joint = joints[quantize]
        ops.write_qkv(qkv, norm, rope, joint, inputs.rows // 3)
        return _parts(joint, qkv)

    return call


def _example_all(inputs: Inputs) -> Call:
    qkv, rope = inputs.draw(inputs.batch, inputs.rows, 3 * inputs.dimensions.width), inputs.rope()
    joints = [inputs.joint(inputs.rows, quantize=quantize) for quantize in (False, True)]
    norm = QKNorm(inputs.draw(inputs.dimensions.head_dim), inputs.draw(inputs.dimensions.head_dim), 1e-6)
    return lambda ops, quantize: _parts(ops.write_all_qkv(qkv, norm, rope, joints[quantize]), qkv)


def _parts(joint: JointQKV, like: Tensor) -> list[Tensor | Quantized]:
    parts = joint.query, joint.key, joint.value
    if joint.scales is None:
        return list(parts)
    scales = joint.scales[:, :, None, None, None].unbind()
    return [Quantized(part, scale, like.dtype) for part, scale in zip(parts, scales, strict=True)]


KERNEL = Kernel(
    "write_qkv",
    functions=(_write_qkv,),
    operations=(
        Operation(
            "write_qkv",
            _example,
            bytes_per_row=lambda dimensions, read, written: 3 * dimensions.width * (read + written),
            per_double=1,
            quantizes=dict.fromkeys(PRECISIONS, (False, True)),
            for_attention=True,
        ),
        Operation(
            "write_all_qkv",
            _example_all,
            # The value stays where the product left it, but for quantized attention.
            bytes_per_row=lambda dimensions, read, written: 2 * dimensions.width * (read + written),
            per_single=1,
            quantizes=dict.fromkeys(PRECISIONS, (False, True)),
            for_attention=True,
        ),
    ),
)
