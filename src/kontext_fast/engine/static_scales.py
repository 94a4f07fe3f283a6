"""Scales of float8 that are known before any number is: bounds that hold whatever the input is.

- A head of query or key has D channels of unit mean square after its RMS norm, times the norm's weights, so no channel
  is larger than sqrt(D) times the largest weight; rotating pairs of channels changes no length.
- A token has W channels of unit mean square after its layer norm, so none is larger than sqrt(W), and its length is
  sqrt(W) at most. Modulation multiplies that by max |1 + scale| at most and adds the length of the shift; what a
  channel of the next layer gives is then at most the length of its row of weights times that, plus its bias (Cauchy and
  Schwarz).
- A GELU gives nothing larger than its input, and attention nothing larger than a value.

Rounding to e4m3 has the same relative error whatever the scale, over a range of 2^15. A loose bound therefore costs no
accuracy, an overflow is impossible, nothing is measured, and no state passes from one step or request to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kontext_fast.engine.ops import E4M3_MAX, SMALLEST_ABSMAX, Linear, QKNorm, Quantized

if TYPE_CHECKING:
    from kontext_fast.engine.weights import EngineWeights

_HEADROOM = 1.25
"""More than rounding the operands of the product that makes the value can add: a sixteenth of each, in float8."""


class AttentionScales:
    """Bounds of one transformer's weights, from which the scales of a request follow with its modulations."""

    def __init__(self, weights: EngineWeights) -> None:
        self._doubles = len(weights.doubles)
        self._width = weights.heads * weights.head_dim
        streams = [*(block.text for block in weights.doubles), *(block.image for block in weights.doubles)]
        norms = [*(stream.norm for stream in streams), *(block.norm for block in weights.singles)]
        projections = [*(stream.qkv for stream in streams), *(block.qkv for block in weights.singles)]
        self._query_key = torch.stack([_largest_weights(norm) for norm in norms]) * weights.head_dim**0.5
        self._value = _Rows(projections, slice(2 * self._width, None))

    def of(self, modulations: Sequence[Tensor]) -> Tensor:
        """[blocks, steps, 3, B] float32, powers of two: of query, key and value, double blocks first.

        `modulations` [steps, B, k W] are those of the text streams, then of the image streams of all double blocks,
        then of the single blocks; each begins with its shift and its scale.
        """
        vectors = torch.stack([modulation[..., : 2 * self._width] for modulation in modulations], dim=2)
        value = self._value.largest(_lengths(*vectors.float().chunk(2, dim=-1)))  # [steps, B, streams]
        value = value.movedim(-1, 0)
        query_key = self._query_key[:, None, :, None].expand(-1, value.shape[1], -1, value.shape[2])
        bounds = torch.cat((query_key, value[:, :, None]), dim=2)
        texts, images, singles = bounds.tensor_split((self._doubles, 2 * self._doubles))
        return _scales_of(torch.cat((torch.maximum(texts, images), singles)))  # both streams are in one buffer


class MLPScales:
    """The same for the MLPs of all streams and, in single blocks, attention's output beside theirs."""

    def __init__(self, weights: EngineWeights) -> None:
        self._streams, self._singles = 2 * len(weights.doubles), len(weights.singles)
        self._width = weights.heads * weights.head_dim
        streams = [*(block.text for block in weights.doubles), *(block.image for block in weights.doubles)]
        layers = [*(stream.mlp_in for stream in streams), *(block.mlp_in for block in weights.singles)]
        self._hidden = _Rows(layers, slice(None))
        self._value = _Rows([block.qkv for block in weights.singles], slice(2 * self._width, None))

    def of(self, modulations: Tensor) -> Tensor:
        """[steps, streams, 3, B, 4] float32, powers of two: of the input, of the result, and the inverse of that.

        Each is there four times, so that all begin at 16 bytes, as cuBLASLt wants them. `modulations` [steps, B, k W]
        are those of `engine.transformer.Prepared`; streams are in the same order.
        """
        widths = [6 * self._width * self._streams, 3 * self._width * self._singles]
        double, single, _ = modulations.tensor_split((widths[0], sum(widths)), dim=-1)
        of_doubles = double.view(*double.shape[:-1], self._streams, 6, self._width)[..., 3:5, :]
        of_singles = single.view(*single.shape[:-1], self._singles, 3, self._width)[..., :2, :]
        shift, scale = torch.cat((of_doubles, of_singles), dim=2).float().unbind(-2)  # [steps, B, streams, W]
        lengths = _lengths(shift, scale)
        hidden = self._hidden.largest(lengths)
        if self._singles:
            value = self._value.largest(lengths[..., self._streams :])
            hidden[..., self._streams :] = torch.maximum(hidden[..., self._streams :], value)
        inputs = ((1 + scale).abs() * self._width**0.5 + shift.abs()).amax(-1)
        scales = _scales_of(torch.stack((inputs, hidden), dim=-1)).permute(0, 2, 3, 1)
        return torch.cat((scales, 1 / scales[:, :, 1:]), dim=2)[..., None].repeat(1, 1, 1, 1, 4)


class _Rows:
    """How large some rows of each layer's result can be."""

    def __init__(self, layers: Sequence[Linear], rows: slice) -> None:
        bounds = [_length_and_bias(layer, rows) for layer in layers]
        self._bounds = torch.stack(bounds, dim=1) if bounds else None

    def largest(self, lengths: Tensor) -> Tensor:
        """[..., layers] of inputs that are no longer than `lengths` [..., layers]."""
        if self._bounds is None:
            return lengths
        longest, bias = self._bounds.unbind()
        return torch.addcmul(bias, lengths, longest)


def _length_and_bias(layer: Linear, rows: slice) -> Tensor:
    """[2] float32: the longest of the rows of weights, and the largest bias."""
    weight, bias = layer.weight, layer.bias
    if isinstance(weight, Quantized):
        weight = weight.values[rows].float() * (weight.scale[rows] if len(weight.scale) > 1 else weight.scale)
    else:
        weight = weight[rows].float()
    length = weight.norm(dim=1).max()
    return torch.stack((length, torch.zeros_like(length) if bias is None else bias[rows].float().abs().max()))


def _largest_weights(norm: QKNorm) -> Tensor:
    """[2] of query and key."""
    return torch.stack((norm.query.float().abs().max(), norm.key.float().abs().max()))


def _lengths(shift: Tensor, scale: Tensor) -> Tensor:
    """[...] of tokens after a layer norm and its modulation by `shift` and `scale`, [..., W] each."""
    factors: Tensor = (1 + scale).abs().amax(-1)
    return torch.add(shift.norm(dim=-1), factors, alpha=shift.shape[-1] ** 0.5)


def _scales_of(bounds: Tensor) -> Tensor:
    return torch.exp2(torch.ceil(torch.log2(_HEADROOM * bounds.clamp(min=SMALLEST_ABSMAX) / E4M3_MAX))).contiguous()
