"""Rounding to float8 (e4m3): one scale per row, for activations and for weights alike.

A row of activations is one token; a row of a weight matrix is one output channel. `scale = absmax / 448`, so the
largest magnitude of a row becomes 448, the largest number of e4m3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

E4M3_MAX = 448.0
SMALLEST_ABSMAX = 1e-12
"""A row of zeros is scaled as if this were its largest magnitude, which keeps it a row of zeros."""


@dataclass(frozen=True)
class Quantized:
    """`values * scale` approximates what was quantized."""

    values: Tensor
    """[..., K] float8_e4m3fn, contiguous."""
    scale: Tensor
    """[..., 1] float32."""
    dtype: torch.dtype
    """Of what was quantized; products with it are given in this dtype."""

    def dequantized(self) -> Tensor:
        """[..., K] float32."""
        return self.values.float() * self.scale


def quantize(x: Tensor) -> Quantized:
    """Round each row of `x`, [..., K] in any floating dtype. A row that holds a NaN or an infinity becomes all NaN."""
    wide = x.float()
    scale = wide.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_ABSMAX) / E4M3_MAX
    # A quotient may round to just above 448; up to 464 the conversion rounds that down to 448 again.
    return Quantized((wide / scale).to(torch.float8_e4m3fn).contiguous(), scale, x.dtype)
