"""Products of float8 matrices with one scale per row and per column, by the library that PyTorch calls (cuBLASLt)."""

from __future__ import annotations

import torch
from torch import Tensor

from kontext_fast.engine.ops import Quantized
from kontext_fast.errors import InvalidInput

_MULTIPLE = 16


def fp8_linear(x: Quantized, weight: Quantized, bias: Tensor | None) -> Tensor:
    """[..., out] bfloat16 of `x` [..., K] and `weight` [out, K], both contiguous; `bias` is [out] bfloat16.

    Raises InvalidInput for what the hardware's layout does not take: K or out no multiple of 16, another dtype.
    """
    out, shared = weight.values.shape
    _require_supported(x, weight, bias)
    # The second operand is read by columns: the transposed view of a contiguous [out, K] is just that.
    product = torch._scaled_mm(
        x.values.view(-1, shared),
        weight.values.t(),
        scale_a=x.scale.view(-1, 1),
        scale_b=weight.scale.expand(out, 1).contiguous().view(1, -1),
        bias=bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return product.view(*x.values.shape[:-1], out)


def _require_supported(x: Quantized, weight: Quantized, bias: Tensor | None) -> None:
    out, shared = weight.values.shape
    if out % _MULTIPLE or shared % _MULTIPLE:
        raise InvalidInput(
            f"fp8 needs layers whose widths are multiples of {_MULTIPLE}, this one is {shared} to {out}; "
            "use the preset faithful."
        )
    if x.dtype != torch.bfloat16 or (bias is not None and bias.dtype != torch.bfloat16):
        raise InvalidInput("fp8 on a GPU gives bfloat16; load the pipeline with dtype=torch.bfloat16.")
