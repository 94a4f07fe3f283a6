"""The FLUX transformer's forward over joint buffers, for all tokens or for an active set of them.

Shapes: B samples; T text, N image and R reference tokens, in this order; W the width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kontext_fast.engine.conditioning import Modulations, modulations, rotations
from kontext_fast.engine.ops import Ops, Rope
from kontext_fast.engine.token_memory import Keep, Layout, TokenMemory
from kontext_fast.engine.weights import DoubleWeights, EngineWeights, SingleWeights, StreamWeights
from kontext_fast.errors import KontextError

EVERY_SAMPLE = slice(None)


@dataclass(frozen=True)
class Prepared:
    """What one pass (positive or negative) of one request needs at every step."""

    layout: Layout
    rope: Rope
    modulations: Modulations
    memory: TokenMemory


@dataclass(frozen=True)
class _Step:
    """What the blocks of one step share."""

    layout: Layout
    active: int
    rope: Rope
    memory: TokenMemory
    samples: slice

    def streams(self) -> tuple[slice, slice]:
        """Rows of the active text and image tokens; reference tokens are image tokens to a double block."""
        return slice(0, self.layout.text), slice(self.layout.text, self.active)


class EngineTransformer:
    """A FLUX transformer made of `ops` on `weights`. Holds nothing of any request."""

    def __init__(self, weights: EngineWeights, ops: Ops) -> None:
        self.weights = weights
        self.ops = ops

    @torch.no_grad()
    def prepare(
        self,
        *,
        timesteps: Tensor,
        guidance: Tensor | None,
        pooled: Tensor,
        text_ids: Tensor,
        image_ids: Tensor,
        image_tokens: int,
        keep: Keep = Keep.NOTHING,
    ) -> Prepared:
        """Everything that the steps of one pass share, their buffers included.

        `timesteps` [steps] and `guidance` [B] are what diffusers' transformer is given, `pooled` is [B, P]; `text_ids`
        [T, 3] and `image_ids` [N + R, 3] are positions, of which the first `image_tokens` have an output.
        """
        layout = Layout(len(text_ids), image_tokens, len(image_ids) - image_tokens)
        shape = self.weights.dimensions
        return Prepared(
            layout=layout,
            rope=rotations(self.weights, text_ids, image_ids),
            modulations=modulations(self.ops, self.weights, timesteps, guidance, pooled),
            memory=TokenMemory(
                keep,
                layout,
                blocks=shape.double_blocks + shape.single_blocks,
                batch=len(pooled),
                heads=(shape.heads, shape.head_dim),
                dtype=self.weights.dtype,
                device=self.weights.device,
            ),
        )

    @torch.no_grad()
    def embed_text(self, text: Tensor) -> Tensor:
        """[B, T, W] of `text` [B, T, C'], as steps take it: the same at every step of a request."""
        return self.ops.linear(text, self.weights.embed_text)

    @torch.no_grad()
    def step(
        self,
        prepared: Prepared,
        index: int,
        image: Tensor,
        text: Tensor,
        *,
        active: int | None = None,
        samples: slice = EVERY_SAMPLE,
        proceed: Callable[[Tensor], bool] | None = None,
    ) -> Tensor | None:
        """[samples, N, C] the transformer's output for the image tokens at timestep `index` of those prepared.

        `image` [samples, at least the active ones of N + R, C] is the input of `samples`, and `text` [samples, T, W]
        what `embed_text` made of theirs.
        Only the first `active` tokens run (None: all of them), the others attend with what is kept of them; an image
        token that does not run has no output, and is missing at the end of N.
        `proceed` is called with what the first block added to the image tokens, [samples, N, W]; if it returns
        False, the step ends there and returns None.
        Raises KontextError if tokens are to rest of which nothing is kept.
        """
        layout, memory = prepared.layout, prepared.memory
        active = layout.total if active is None else active
        _require_kept(layout, memory, active, samples)
        step = _Step(layout, active, prepared.rope, memory, samples)
        modulation = prepared.modulations.at(index, samples)
        stream = self._embed(image[:, : active - layout.text], text)
        outputs = slice(layout.text, min(active, layout.output_end))
        before = stream[:, outputs].clone() if proceed is not None else None

        doubles, singles = self.weights.doubles, self.weights.singles
        for block in range(len(doubles) + len(singles)):
            if block < len(doubles):
                self._double(step, block, doubles[block], stream, (modulation.text[block], modulation.image[block]))
            else:
                single = block - len(doubles)
                self._single(step, block, singles[single], stream, modulation.singles[single])
            if block == 0 and proceed is not None and before is not None and not proceed(stream[:, outputs] - before):
                return None
        if active == layout.total:
            memory.note_refresh(samples)

        scale, shift = modulation.final.chunk(2, dim=-1)
        normed = self.ops.norm_modulate(stream[:, outputs], shift, scale, quantize=False)
        return self.ops.linear(normed, self.weights.output)

    def _embed(self, image: Tensor, text: Tensor) -> Tensor:
        """[B, active, W]: text [B, T, W] and image tokens in one buffer, where they stay until the last block."""
        text_tokens, width = text.shape[1], self.weights.dimensions.width
        stream = torch.empty(
            len(image), text_tokens + image.shape[1], width, dtype=self.weights.dtype, device=self.weights.device
        )
        stream[:, :text_tokens] = text
        stream[:, text_tokens:] = self.ops.linear(image, self.weights.embed_image)
        return stream

    def _double(
        self, step: _Step, block: int, weights: DoubleWeights, stream: Tensor, modulation: tuple[Tensor, Tensor]
    ) -> None:
        ops, joint = self.ops, step.memory.joint(block, step.samples)
        parts = [
            (rows, stream[:, rows], part, vector.chunk(6, dim=-1))
            for rows, part, vector in zip(step.streams(), (weights.text, weights.image), modulation, strict=True)
        ]
        for rows, tokens, part, (shift, scale, *_) in parts:
            normed = ops.norm_modulate(tokens, shift, scale, quantize=part.qkv.quantized)
            qkv = ops.linear(normed, part.qkv)
            ops.write_qkv(qkv, part.norm, step.rope.rows(rows.start, rows.stop), joint, rows.start)
        step.memory.settle(block, step.active, step.samples)
        attended = ops.attention(joint.query[:, : step.active], joint.key, joint.value)
        for rows, tokens, part, (_, _, gate, *mlp) in parts:
            projected = ops.linear(ops.prepare(attended[:, rows], quantize=part.out.quantized), part.out)
            ops.add_gated(tokens, gate, projected)
            self._mlp(tokens, part, mlp)

    def _mlp(self, tokens: Tensor, weights: StreamWeights, modulation: list[Tensor]) -> None:
        ops, (shift, scale, gate) = self.ops, modulation
        normed = ops.norm_modulate(tokens, shift, scale, quantize=weights.mlp_in.quantized)
        hidden = ops.gelu(ops.linear(normed, weights.mlp_in), quantize=weights.mlp_out.quantized)
        ops.add_gated(tokens, gate, ops.linear(hidden, weights.mlp_out))

    def _single(self, step: _Step, block: int, weights: SingleWeights, stream: Tensor, modulation: Tensor) -> None:
        ops, joint = self.ops, step.memory.joint(block, step.samples)
        shift, scale, gate = modulation.chunk(3, dim=-1)
        normed = ops.norm_modulate(stream, shift, scale, quantize=weights.qkv_mlp.quantized)
        qkv_mlp = ops.linear(normed, weights.qkv_mlp)
        end = 3 * self.weights.dimensions.width
        ops.write_qkv(qkv_mlp[..., :end], weights.norm, step.rope.rows(0, step.active), joint, 0)
        step.memory.settle(block, step.active, step.samples)
        attended = ops.attention(joint.query[:, : step.active], joint.key, joint.value)
        joined = ops.join_gelu(attended, qkv_mlp[..., end:], quantize=weights.out.quantized)
        ops.add_gated(stream, gate, ops.linear(joined, weights.out))


def _require_kept(layout: Layout, memory: TokenMemory, active: int, samples: slice) -> None:
    if active == layout.total:
        return
    if not max(layout.text + 1, memory.first_that_may_rest()) <= active < layout.total:
        raise KontextError(
            f"A step of {active} of {layout.total} tokens needs the other ones' keys and values, "
            f"but {memory.keep.value} is kept; keep more, or run all tokens."
        )
    if not memory.refreshed(samples):
        raise KontextError("A step of some tokens came before any step of all of them; run all tokens first.")
