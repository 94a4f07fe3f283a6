"""Every kernel of a step, launched on a few rows: what compiles here is what a step of any size runs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kontext_fast.engine.dimensions import Dimensions
from kontext_fast.engine.ops import JointQKV, Ops, QKNorm, Rope

_ROWS = 16


def first_launches(
    ops: Ops, dimensions: Dimensions, dtype: torch.dtype, device: torch.device, *, quantize: bool
) -> tuple[Callable[[], object], ...]:
    """Calls that may run in any order and at once; each compiles one kernel, if that was never done before.

    `quantize` is whether the large products of the transformer of these `dimensions` are in fp8.
    """
    width, hidden = dimensions.width, dimensions.mlp_width

    def rows(channels: int) -> Tensor:
        return torch.zeros(1, _ROWS, channels, dtype=dtype, device=device)

    def vector() -> Tensor:
        return torch.zeros(1, width, dtype=dtype, device=device)

    def write_qkv() -> None:
        heads, channels = dimensions.heads, dimensions.head_dim
        ones = torch.ones(channels, dtype=dtype, device=device)
        norm = QKNorm(ones, ones, 1e-6)
        rope = Rope(*torch.zeros(2, _ROWS, channels // 2, device=device))
        joint = JointQKV(*torch.zeros(3, 1, _ROWS, heads, channels, dtype=dtype, device=device))
        ops.write_qkv(rows(3 * width), norm, rope, joint, 0)

    return (
        write_qkv,
        # The slowest first. The output layer is never quantized, so its norm is not, either.
        lambda: ops.join_gelu(rows(width), rows(hidden), quantize=quantize),
        lambda: ops.gelu(rows(hidden), quantize=quantize),
        lambda: ops.norm_modulate(rows(width), vector(), vector(), quantize=False),
        *((lambda: ops.norm_modulate(rows(width), vector(), vector(), quantize=True),) if quantize else ()),
        *((lambda: ops.prepare(rows(width), quantize=True),) if quantize else ()),
        lambda: ops.add_gated(rows(width), vector(), rows(width)),
    )
