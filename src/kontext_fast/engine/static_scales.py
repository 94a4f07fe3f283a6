"""Scales of attention in float8 that are known before any number is: bounds that hold whatever the input is.

- A head of query or key has D channels of unit mean square after its RMS norm, times the norm's weights, so no channel
  is larger than sqrt(D) times the largest weight; rotating pairs of channels changes no length.
- A token has W channels of unit mean square after its layer norm, so its length is sqrt(W) at most. Modulation
  multiplies that by max |1 + scale| at most and adds the length of the shift; a channel of the value is then at
  most the length of its row of weights times that, plus its bias (Cauchy and Schwarz).

Rounding to e4m3 has the same relative error whatever the scale, over a range of 2^15. A loose bound therefore costs no
accuracy, an overflow is impossible, nothing is measured, and no state passes from one step or request to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kontext_fast.engine.ops import E4M3_MAX, Linear, QKNorm, Quantized

if TYPE_CHECKING:
    from kontext_fast.engine.weights import EngineWeights

_HEADROOM = 1.25
"""More than rounding the operands of the product that makes the value can add: a sixteenth of each, in float8."""


class StaticScales:
    """Bounds of one transformer's weights, from which the scales of a request follow with its modulations."""

    def __init__(self, weights: EngineWeights) -> None:
        self._doubles = len(weights.doubles)
        self._width = weights.heads * weights.head_dim
        streams = [*(block.text for block in weights.doubles), *(block.image for block in weights.doubles)]
        norms = [*(stream.norm for stream in streams), *(block.norm for block in weights.singles)]
        projections = [*(stream.qkv for stream in streams), *(block.qkv for block in weights.singles)]
        self._query_key = torch.stack([_largest_weights(norm) for norm in norms]) * weights.head_dim**0.5
        lengths, biases = zip(*(self._of_value(projection) for projection in projections), strict=True)
        self._lengths, self._biases = torch.stack(lengths), torch.stack(biases)

    def of(self, modulations: Sequence[Tensor]) -> Tensor:
        """[blocks, steps, 3, B] float32, powers of two: of query, key and value, double blocks first.

        `modulations` [steps, B, k W] are those of the text streams, then of the image streams of all double blocks,
        then of the single blocks; each begins with its shift and its scale.
        """
        vectors = torch.stack([modulation[..., : 2 * self._width] for modulation in modulations]).float()
        shift, scale = vectors.chunk(2, dim=-1)
        lengths = (1 + scale).abs().amax(-1) * self._width**0.5 + shift.norm(dim=-1)  # [streams, steps, B]
        value = lengths * self._lengths[:, None, None] + self._biases[:, None, None]
        query_key = self._query_key[:, None, :, None].expand(-1, value.shape[1], -1, value.shape[2])
        bounds = torch.cat((query_key, value[:, :, None]), dim=2)
        texts, images, singles = bounds.tensor_split((self._doubles, 2 * self._doubles))
        joint = torch.cat((torch.maximum(texts, images), singles))  # both streams of a double block are in one buffer
        return torch.exp2(torch.ceil(torch.log2(_HEADROOM * joint / E4M3_MAX))).contiguous()

    def _of_value(self, projection: Linear) -> tuple[Tensor, Tensor]:
        """The longest row of weights and the largest bias of the value's channels."""
        rows = slice(2 * self._width, 3 * self._width)
        weight, bias = projection.weight, projection.bias
        matrix = (weight.values[rows].float() * weight.scale[rows]) if isinstance(weight, Quantized) else weight[rows]
        length = matrix.float().norm(dim=1).max()
        return length, torch.zeros_like(length) if bias is None else bias[rows].float().abs().max()


def _largest_weights(norm: QKNorm) -> Tensor:
    """[2] of query and key."""
    return torch.stack((norm.query.float().abs().max(), norm.key.float().abs().max()))
