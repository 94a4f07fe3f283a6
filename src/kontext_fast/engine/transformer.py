"""The FLUX transformer's forward over joint buffers.

Shapes: B samples; T text, N image and R reference tokens, in this order; W the width. Reference tokens are image tokens
to every block; they have no output.

Modulations depend on timestep, guidance and pooled text only, so those of all steps come from one matrix product per
layer, instead of reading a quarter of all weights again at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from kontext_fast.engine.ops import JointQKV, Linear, Ops, Rope
from kontext_fast.engine.static_scales import StaticScales
from kontext_fast.engine.step_reuse import Schedule, Velocities
from kontext_fast.engine.weights import DoubleWeights, EngineWeights, SingleWeights, StreamWeights
from kontext_fast.errors import KontextError

if TYPE_CHECKING:
    from kontext_fast.engine.sequence_parallel import SequenceParallel, Share
    from kontext_fast.records.schema import StepKind


@dataclass(frozen=True)
class Modulations:
    """Every modulation vector of a request, [steps, B, k W] per layer; k is given where the layer's weights are."""

    text: tuple[Tensor, ...]
    """Per double block."""
    image: tuple[Tensor, ...]
    singles: tuple[Tensor, ...]
    final: Tensor

    def at(self, step: int) -> Modulations:
        """Those of one step: [B, k W] per layer, views."""
        return Modulations(
            text=tuple(vectors[step] for vectors in self.text),
            image=tuple(vectors[step] for vectors in self.image),
            singles=tuple(vectors[step] for vectors in self.singles),
            final=self.final[step],
        )


@dataclass(frozen=True)
class Prepared:
    """What one branch (positive or negative prompt) of one request needs at every step."""

    image_tokens: int
    """N: the tokens with an output, the first ones after the text; of a share, those that are in it."""
    rope: Rope
    modulations: Modulations
    joint: JointQKV
    """One set of buffers, which serves all blocks in turn."""
    scales: Tensor | None = None
    """[blocks, steps, 3, B] of those buffers, where the kernel of attention is quantized."""
    share: Share | None = None
    """Of the tokens, where several processes compute a step together."""

    def joint_of(self, block: int, step: int) -> JointQKV:
        """The buffers as a block uses them at a step; double blocks are counted first."""
        return self.joint if self.scales is None else replace(self.joint, scales=self.scales[block, step])


class EngineTransformer:
    """A FLUX transformer of `ops` on `weights`. It holds no state of a request."""

    def __init__(
        self,
        weights: EngineWeights,
        ops: Ops,
        unquantized: EngineWeights | None = None,
        parallel: SequenceParallel | None = None,
    ) -> None:
        """`unquantized`: the same weights before they were rounded, for the steps that are asked for in full precision.
        What is not quantized is the same in both. `parallel`: with which processes it shares its steps."""
        self.weights = weights
        self.ops = ops if parallel is None else parallel.ops(ops)
        self._parallel = parallel
        self._static_scales = StaticScales(weights) if ops.attention_kernel.quantized else None
        self._unquantized = unquantized

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
    ) -> Prepared:
        """Everything that the steps of one branch share, their buffers included.

        `timesteps` [steps], in the precision in which the model is given them, and `guidance` [B] are those of
        diffusers' transformer, `pooled` is [B, P]; `text_ids` [T, 3] and `image_ids` [N + R, 3] are positions, of which
        the first `image_tokens` have an output.
        """
        weights, batch, text, image = self.weights, len(pooled), len(text_ids), len(image_ids)
        dtype = weights.dtype if self._static_scales is None else torch.float8_e4m3fn
        rope, share = self._rotations(text_ids, image_ids), None
        if self._parallel is None:
            shape = 3, batch, text + image, weights.heads, weights.head_dim
            joint = JointQKV(*torch.empty(shape, dtype=dtype, device=weights.device))
        else:
            share = self._parallel.share(weights, dtype, batch, (text, image_tokens, image - image_tokens))
            joint, rope, image_tokens = share.joint, rope.rows(share.own.start, share.own.stop), share.outputs
        modulations = self._modulations(timesteps, guidance, pooled)
        scales = None
        if self._static_scales is not None:
            scales = self._static_scales.of([*modulations.text, *modulations.image, *modulations.singles])
        return Prepared(image_tokens, rope, modulations, joint, scales, share)

    @torch.no_grad()
    def embed_text(self, text: Tensor) -> Tensor:
        """[B, T, W] of `text` [B, T, C'], which steps take: the same at every step of a request."""
        return self.ops.linear(text, self.weights.embed_text)

    @torch.no_grad()
    def step(
        self, prepared: Prepared, index: int, image: Tensor, text: Tensor, *, full_precision: bool = False
    ) -> Tensor:
        """[B, N, C] the transformer's output for the image tokens at timestep `index` of those prepared.

        `image` is [B, N + R, C], and `text` [B, T, W] the result of `embed_text`. `full_precision` computes it without
        quantization. Raises KontextError where the engine has only quantized weights.
        """
        weights = self._unquantized if full_precision and self.weights.quantized else self.weights
        if weights is None:
            raise KontextError("The engine holds no weights in full precision; give Engine(full_precision=...) steps.")
        if (share := prepared.share) is not None:
            text, image = share.of(text, image)
        vectors, text_tokens = prepared.modulations.at(index), text.shape[1]
        stream = self._embed(image, text)
        joints = (prepared.joint_of(block, index) for block in count())
        for double, *of_streams in zip(weights.doubles, vectors.text, vectors.image, strict=True):
            self._double(double, next(joints), prepared.rope, stream, text_tokens, of_streams)
        for single, vector in zip(weights.singles, vectors.singles, strict=True):
            self._single(single, next(joints), prepared.rope, stream, vector)
        scale, shift = vectors.final.chunk(2, dim=-1)
        output = stream[:, text_tokens : text_tokens + prepared.image_tokens]
        normed = self.ops.norm_modulate(output, shift, scale, quantize=False)
        velocity = self.ops.linear(normed, self.weights.output)
        return velocity if share is None else share.gathered(velocity)

    def _rotations(self, text_ids: Tensor, image_ids: Tensor) -> Rope:
        cos, sin = self.weights.embed_positions(torch.cat((text_ids, image_ids)))
        # The transformer repeats each angle for both channels of its pair.
        return Rope(cos[:, ::2].contiguous(), sin[:, ::2].contiguous())

    def _modulations(self, timesteps: Tensor, guidance: Tensor | None, pooled: Tensor) -> Modulations:
        weights, steps, batch = self.weights, len(timesteps), len(pooled)
        times = timesteps.repeat_interleave(batch) * 1000
        pooled = pooled.repeat(steps, 1)
        if guidance is None:
            embedded = weights.embed_conditions(times, pooled)
        else:
            embedded = weights.embed_conditions(times, guidance.to(weights.dtype).repeat(steps) * 1000, pooled)
        activated = functional.silu(embedded).view(steps, batch, -1)

        def of(layer: Linear) -> Tensor:
            # One at a time, from wherever it waits.
            return self.ops.linear(activated, layer.on(activated.device))

        return Modulations(
            text=tuple(of(block.text.modulation) for block in weights.doubles),
            image=tuple(of(block.image.modulation) for block in weights.doubles),
            singles=tuple(of(block.modulation) for block in weights.singles),
            final=of(weights.final_modulation),
        )

    def _embed(self, image: Tensor, text: Tensor) -> Tensor:
        """[B, T + N + R, W]: text and image tokens in one buffer, where they stay until the last block."""
        text_tokens = text.shape[1]
        stream = text.new_empty(len(text), text_tokens + image.shape[1], text.shape[2])
        stream[:, :text_tokens] = text
        stream[:, text_tokens:] = self.ops.linear(image, self.weights.embed_image)
        return stream

    def _double(
        self,
        weights: DoubleWeights,
        joint: JointQKV,
        rope: Rope,
        stream: Tensor,
        text_tokens: int,
        modulation: Sequence[Tensor],
    ) -> None:
        ops, tokens = self.ops, stream.shape[1]
        rows_of = slice(0, text_tokens), slice(text_tokens, tokens)
        parts = [
            (rows, stream[:, rows], part, vector.chunk(6, dim=-1))
            for rows, part, vector in zip(rows_of, (weights.text, weights.image), modulation, strict=True)
            if rows.start < rows.stop  # a share may hold no token of a stream
        ]
        for rows, stream_part, part, (shift, scale, *_) in parts:
            normed = ops.norm_modulate(stream_part, shift, scale, quantize=part.qkv.quantized)
            qkv = ops.linear(normed, part.qkv)
            ops.write_qkv(qkv, part.norm, rope.rows(rows.start, rows.stop), joint, rows.start)
        attended = ops.attention(joint)
        for rows, stream_part, part, (_, _, gate, *mlp) in parts:
            projected = ops.linear(ops.prepare(attended[:, rows], quantize=part.out.quantized), part.out)
            ops.add_gated(stream_part, gate, projected)
            self._mlp(stream_part, part, mlp)

    def _mlp(self, stream: Tensor, weights: StreamWeights, modulation: list[Tensor]) -> None:
        ops, (shift, scale, gate) = self.ops, modulation
        normed = ops.norm_modulate(stream, shift, scale, quantize=weights.mlp_in.quantized)
        hidden = ops.linear_gelu(normed, weights.mlp_in, quantize=weights.mlp_out.quantized)
        ops.add_gated(stream, gate, ops.linear(hidden, weights.mlp_out))

    def _single(self, weights: SingleWeights, joint: JointQKV, rope: Rope, stream: Tensor, modulation: Tensor) -> None:
        ops = self.ops
        shift, scale, gate = modulation.chunk(3, dim=-1)
        normed = ops.norm_modulate(stream, shift, scale, quantize=weights.qkv.quantized)
        ops.write_qkv(ops.linear(normed, weights.qkv), weights.norm, rope, joint, 0)
        attended = ops.attention(joint)
        joined = ops.join_linear_gelu(attended, normed, weights.mlp_in, quantize=weights.out.quantized)
        ops.add_gated(stream, gate, ops.linear(joined, weights.out))


@dataclass(frozen=True)
class _EmbeddedText:
    source: Tensor
    version: int | None
    """Of `source`, which torch increments at every write; None in inference mode, where it does not."""
    embedded: Tensor

    def is_of(self, text: Tensor) -> bool:
        return text is self.source and self.version is not None and text._version == self.version


class Branch:
    """Runs the steps of one branch of classifier-free guidance (the positive or the negative prompt), in order."""

    def __init__(
        self,
        engine: EngineTransformer,
        prepared: Prepared,
        sigmas: Sequence[float],
        schedule: Schedule | None = None,
        full_precision: frozenset[int] = frozenset(),
    ) -> None:
        """`sigmas`: noise level at the beginning of each step, and at the end of the last. No schedule: every step is
        computed. `full_precision`: the steps that are computed without quantization."""
        self._engine = engine
        self._prepared = prepared
        self._sigmas = sigmas
        self._schedule = schedule
        self._full_precision = full_precision
        self._velocities = None if schedule is None else Velocities(schedule.order, corrects=schedule.corrects)
        self._text: _EmbeddedText | None = None
        self.kinds: list[StepKind] = []
        """Of each step so far."""

    def step(self, index: int, image: Tensor, text: Tensor) -> Tensor:
        """[B, N, C] the velocity of step `index`.

        `image` [B, N + R, C] and `text` [B, T, C'] are the transformer's inputs; text is embedded again only if it
        changed.
        """
        if self._schedule is None or self._velocities is None:
            return self._computed(index, image, text)
        sigma, until = self._sigmas[index : index + 2]
        if index in self._schedule.computed or not self.kinds:
            return self._velocities.computed(sigma, until, self._computed(index, image, text))
        self.kinds.append("skipped")
        return self._velocities.skipped(sigma, until)

    def _computed(self, index: int, image: Tensor, text: Tensor) -> Tensor:
        if self._text is None or not self._text.is_of(text):
            # Writes to tensors of inference mode are not counted, so those are embedded at every step.
            version = None if text.is_inference() else text._version
            self._text = _EmbeddedText(text, version, self._engine.embed_text(text))
        self.kinds.append("full")
        full_precision = index in self._full_precision
        return self._engine.step(self._prepared, index, image, self._text.embedded, full_precision=full_precision)
