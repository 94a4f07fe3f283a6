"""What a request fixes for all of its steps: modulation vectors and token positions.

Modulations depend on timestep, guidance and pooled text only, so those of all steps come from one matrix product per
layer, instead of reading a quarter of all weights again at every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kontext_fast.engine.ops import Linear, Ops, Rope
from kontext_fast.engine.weights import EngineWeights


@dataclass(frozen=True)
class Modulations:
    """Every modulation vector of a request, [steps, B, k W] per layer; k is given where the layer's weights are."""

    text: tuple[Tensor, ...]
    """Per double block."""
    image: tuple[Tensor, ...]
    singles: tuple[Tensor, ...]
    final: Tensor

    def at(self, step: int, samples: slice) -> Modulations:
        """Those of one step and of some samples: [samples, k W] per layer, views."""
        return Modulations(
            text=tuple(one[step, samples] for one in self.text),
            image=tuple(one[step, samples] for one in self.image),
            singles=tuple(one[step, samples] for one in self.singles),
            final=self.final[step, samples],
        )


def modulations(
    ops: Ops, weights: EngineWeights, timesteps: Tensor, guidance: Tensor | None, pooled: Tensor
) -> Modulations:
    """Of `timesteps` [steps] and `guidance` [B], both as the transformer is given them, and `pooled` [B, P]."""
    steps, batch = len(timesteps), len(pooled)
    times = timesteps.to(weights.dtype).repeat_interleave(batch) * 1000
    pooled = pooled.repeat(steps, 1)
    if guidance is None:
        embedded = weights.embed_conditions(times, pooled)
    else:
        embedded = weights.embed_conditions(times, guidance.to(weights.dtype).repeat(steps) * 1000, pooled)
    activated = functional.silu(embedded).view(steps, batch, -1)

    def of(layer: Linear) -> Tensor:
        return ops.linear(activated, layer)

    return Modulations(
        text=tuple(of(block.text.modulation) for block in weights.doubles),
        image=tuple(of(block.image.modulation) for block in weights.doubles),
        singles=tuple(of(block.modulation) for block in weights.singles),
        final=of(weights.final_modulation),
    )


def rotations(weights: EngineWeights, text_ids: Tensor, image_ids: Tensor) -> Rope:
    """Of the positions [T, 3] and [N, 3], text first."""
    cos, sin = weights.embed_positions(torch.cat((text_ids, image_ids)))
    # The transformer repeats each angle for both channels of its pair.
    return Rope(cos[:, ::2].contiguous(), sin[:, ::2].contiguous())
