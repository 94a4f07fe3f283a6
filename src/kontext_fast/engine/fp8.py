"""Rounding to float8 (e4m3): one scale per row, for activations and for weights alike, or one per head, for attention.

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
    """float32, with 1 for every dimension whose numbers share a scale: [..., 1] for rows."""
    dtype: torch.dtype
    """Of what was quantized; products with it are given in this dtype."""

    def dequantized(self) -> Tensor:
        """[..., K] float32."""
        return self.values.float() * self.scale


def quantize(x: Tensor) -> Quantized:
    """Round each row of `x`, [..., K] in any floating dtype. A row that holds a NaN or an infinity becomes all NaN."""
    return _quantized(x, (-1,))


def quantize_heads(x: Tensor) -> Quantized:
    """Round each head of each sample of `x`, [B, S, H, D], over all its tokens: attention takes no other scale."""
    return _quantized(x, (1, 3))


def _quantized(x: Tensor, shared: tuple[int, ...]) -> Quantized:
    wide = x.float()
    scale = wide.abs().amax(shared, keepdim=True).clamp(min=SMALLEST_ABSMAX) / E4M3_MAX
    # A quotient may round to just above 448; up to 464 the conversion rounds that down to 448 again.
    return Quantized((wide / scale).to(torch.float8_e4m3fn).contiguous(), scale, x.dtype)
