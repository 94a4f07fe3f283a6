"""The FLUX transformer's forward over joint buffers.

Shapes: B samples; T text, N image and R reference tokens, in this order; W the width. Reference tokens are image tokens
to every block; they have no output.

Modulations depend on timestep, guidance and pooled text only, so those of all steps come from one matrix product per
layer, instead of reading a quarter of all weights again at every step.

The last single block computes what the output is made from: keys and values of all tokens, and everything else of the
tokens with an output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from kontext_fast.engine.ops import Activations, JointQKV, Ops, Quantized, Rope, rows_of
from kontext_fast.engine.static_scales import AttentionScales, MLPScales
from kontext_fast.engine.step_reuse import Schedule, Velocities
from kontext_fast.engine.weights import DoubleWeights, EngineWeights, SingleWeights, StreamWeights
from kontext_fast.errors import KontextError

if TYPE_CHECKING:
    from kontext_fast.engine.graphs.recorded_calls import StepGraphs
    from kontext_fast.engine.sequence_parallel import SequenceParallel, Share
    from kontext_fast.records.schema import StepKind


@dataclass(frozen=True)
class Prepared:
    """What one branch (positive or negative prompt) of one request needs at every step."""

    image_tokens: int
    """N: the tokens with an output, the first ones after the text; of a share, those that are in it."""
    rope: Rope
    modulations: Tensor
    """[steps, B, k W]: all vectors of the text streams of double blocks, of their image streams, of single blocks, and
    of the output, in this order."""
    scales: Tensor | None = None
    """[steps, blocks, 3, B] of query, key and value, double blocks first; for a quantized kernel of attention."""
    share: Share | None = None
    """Of the tokens, where several processes compute a step together."""
    mlp_scales: Tensor | None = None
    """[steps, streams, 3, B, 4] as `engine.static_scales.MLPScales` gives them, for MLPs in fp8."""

    def at(self, step: int) -> list[Tensor]:
        """Of one step: cosines and sines, modulation vectors, and the scales where there are any; views."""
        scales = [scales[step] for scales in (self.scales, self.mlp_scales) if scales is not None]
        return [self.rope.cos, self.rope.sin, self.modulations[step], *scales]


class EngineTransformer:
    """A FLUX transformer of `ops` on `weights`. It holds no state of a request."""

    def __init__(
        self,
        weights: EngineWeights,
        ops: Ops,
        unquantized: EngineWeights | None = None,
        parallel: SequenceParallel | None = None,
        graphs: StepGraphs | None = None,
    ) -> None:
        """`unquantized`: the same weights before they were rounded, for the steps that are asked for in full precision.
        What is not quantized is the same in both. `parallel`: with which processes it shares its steps. `graphs`: for
        steps that the host would bound."""
        self.weights = weights
        self.ops = ops if parallel is None else parallel.ops(ops)
        self.graphs = graphs
        self._parallel = parallel
        self._attention_scales = AttentionScales(weights) if ops.attention_kernel.quantized else None
        fp8 = weights.precision == "fp8"
        self._mlp_scales = MLPScales(weights) if fp8 and ops.has_static_scales(weights.device) else None
        self._unquantized = unquantized

    @property
    def mlp_scales(self) -> str | None:
        """By which scales MLPs round: `static`, which are known before, those of `rows`, or both; None: none rounds."""
        first = [matrix for name, matrix in self.weights.quantized.items() if name.endswith(".mlp_in")]
        known = self._mlp_scales is not None
        kinds = {"static" if known and matrix.scale.numel() == 1 else "rows" for matrix in first}
        return " and ".join(sorted(kinds, reverse=True)) or None

    @torch.no_grad()
    def prepare(
        self,
        *,
        timesteps: Tensor,
        guidance: Tensor | None,
        pooled: Tensor,
        text_ids: Tensor,
        image_ids: Tensor,
        image_tokens: int | Tensor,
    ) -> Prepared:
        """Everything that the steps of one branch share.

        `timesteps` [steps], in the precision in which the model is given them, and `guidance` [B] are those of
        diffusers' transformer, `pooled` is [B, P]; `text_ids` [T, 3] and `image_ids` [N + R, 3] are positions, of which
        the first `image_tokens` have an output. A number that a GPU has to count is waited for last.
        """
        weights, batch, text, image = self.weights, len(pooled), len(text_ids), len(image_ids)
        rope, share = self._rotations(text_ids, image_ids), None
        modulations = self._modulations(timesteps, guidance, pooled)
        scales = None
        if self._attention_scales is not None:
            *of_blocks, _ = torch.split_with_sizes(modulations, self._vector_widths, dim=-1)
            scales = self._attention_scales.of(of_blocks).transpose(0, 1).contiguous()
        mlp_scales = None if self._mlp_scales is None else self._mlp_scales.of(modulations)
        outputs = int(image_tokens)
        if self._parallel is not None:
            dtype = weights.dtype if self._attention_scales is None else torch.float8_e4m3fn
            share = self._parallel.share(weights, dtype, batch, (text, outputs, image - outputs))
            rope, outputs = rope.rows(share.own.start, share.own.stop), share.outputs
        return Prepared(outputs, rope, modulations, scales, share, mlp_scales)

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
        run = partial(self._run, weights, prepared.image_tokens, share)
        inputs = [image, text, *prepared.at(index)]
        if self.graphs is None:
            (velocity,) = run(inputs)
        else:
            sizes = prepared.image_tokens if share is None else share.sizes
            (velocity,) = self.graphs.run((sizes, full_precision), run, inputs)
        return velocity if share is None else share.gathered(velocity)

    def _run(
        self, weights: EngineWeights, image_tokens: int, share: Share | None, inputs: Sequence[Tensor]
    ) -> tuple[Tensor]:
        """One step of `inputs`: image, embedded text, and what `Prepared.at` gives. It decides by shapes alone, so that
        a graph may repeat it, and its buffers are its own, so that graphs share them."""
        image, text, cos, sin, vectors, *scales = inputs
        of_attention = None if self._attention_scales is None else scales[0]
        text_tokens, rope = text.shape[1], Rope(cos, sin)
        doubles = len(weights.doubles)
        of_mlps: Sequence[Tensor | None] = [None] * (2 * doubles + len(weights.singles))
        if self._mlp_scales is not None:
            of_mlps = scales[-1][..., 0].unbind()
        *of_blocks, final = torch.split_with_sizes(vectors, self._vector_widths, dim=-1)
        stream = self._embed(image, text)
        joints = self._joints(stream, share, of_attention)
        parts = slice(0, text_tokens), slice(text_tokens, stream.shape[1])
        streams = [_Residual(self.ops, stream[:, rows]) for rows in parts]
        known = list(zip(of_blocks, of_mlps, strict=True))
        for double, *of_streams in zip(weights.doubles, known[:doubles], known[doubles : 2 * doubles], strict=True):
            self._double(double, next(joints), rope, streams, of_streams)
        for part in streams:
            part.finish()
        both, outputs = _Residual(self.ops, stream), slice(text_tokens, text_tokens + image_tokens)
        for index, (single, of_stream) in enumerate(zip(weights.singles, known[2 * doubles :], strict=True), 1):
            is_last = index == len(weights.singles)
            self._single(single, next(joints), rope, both, of_stream, outputs if is_last else None)
        both.finish()
        scale, shift = final.chunk(2, dim=-1)
        output = stream[:, outputs]
        normed = self.ops.norm_modulate(output, shift, scale, quantize=False)
        return (self.ops.linear(normed, weights.output),)

    @property
    def _vector_widths(self) -> list[int]:
        """Of the modulations of each layer, in their order in `Prepared`."""
        weights = self.weights
        doubles, singles, width = len(weights.doubles), len(weights.singles), weights.heads * weights.head_dim
        return [6 * width] * (2 * doubles) + [3 * width] * singles + [2 * width]

    def _joints(self, stream: Tensor, share: Share | None, scales: Tensor | None = None) -> Iterator[JointQKV]:
        """The buffers of each block in turn: one set, which serves all of them."""
        if share is not None:
            joint: JointQKV = share.joint()
        else:
            shape = 3, *stream.shape[:2], self.weights.heads, self.weights.head_dim
            dtype = stream.dtype if scales is None else torch.float8_e4m3fn
            joint = JointQKV(*torch.empty(shape, dtype=dtype, device=stream.device))
        for block in count():
            yield joint if scales is None else replace(joint, scales=scales[block])

    def _rotations(self, text_ids: Tensor, image_ids: Tensor) -> Rope:
        cos, sin = self.weights.embed_positions(torch.cat((text_ids, image_ids)))
        # The transformer repeats each angle for both channels of its pair.
        return Rope(cos[:, ::2].contiguous(), sin[:, ::2].contiguous())

    def _modulations(self, timesteps: Tensor, guidance: Tensor | None, pooled: Tensor) -> Tensor:
        weights, steps, batch = self.weights, len(timesteps), len(pooled)
        times = timesteps.repeat_interleave(batch) * 1000
        pooled = pooled.repeat(steps, 1)
        if guidance is None:
            embedded = weights.embed_conditions(times, pooled)
        else:
            embedded = weights.embed_conditions(times, guidance.to(weights.dtype).repeat(steps) * 1000, pooled)
        activated = functional.silu(embedded).view(steps, batch, -1)

        layers = (
            *(block.text.modulation for block in weights.doubles),
            *(block.image.modulation for block in weights.doubles),
            *(block.modulation for block in weights.singles),
            weights.final_modulation,
        )
        # One at a time, from wherever it waits.
        return torch.cat([self.ops.linear(activated, layer.on(activated.device)) for layer in layers], dim=-1)

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
        streams: Sequence[_Residual],
        known: Sequence[_Known],
    ) -> None:
        ops, start, parts = self.ops, 0, []
        for stream, part, (vector, scales) in zip(streams, (weights.text, weights.image), known, strict=True):
            rows = slice(start, start + stream.tokens)
            start = rows.stop
            if stream.tokens:  # a share may hold no token of a stream
                parts.append((rows, stream, part, vector.chunk(6, dim=-1), scales))
        for rows, stream, part, (shift, scale, *_), _ in parts:
            qkv = ops.linear(stream.normed(shift, scale, quantize=part.qkv.quantized), part.qkv)
            ops.write_qkv(qkv, part.norm, rope.rows(rows.start, rows.stop), joint, rows.start)
        attended = ops.attention(joint)
        for rows, stream, part, (_, _, gate, *mlp), scales in parts:
            projected = ops.linear(ops.prepare(attended[:, rows], quantize=part.out.quantized), part.out)
            stream.add(gate, projected)
            self._mlp(stream, part, mlp, _static(part, scales))

    def _mlp(self, stream: _Residual, weights: StreamWeights, modulation: list[Tensor], static: Tensor | None) -> None:
        ops, (shift, scale, gate) = self.ops, modulation
        normed = stream.normed(shift, scale, quantize=weights.mlp_in.quantized, static=static)
        hidden = ops.linear_gelu(normed, weights.mlp_in, quantize=weights.mlp_out.quantized, static=static)
        stream.add(gate, ops.linear(hidden, weights.mlp_out))

    def _single(
        self,
        weights: SingleWeights,
        joint: JointQKV,
        rope: Rope,
        stream: _Residual,
        known: _Known,
        outputs: slice | None = None,
    ) -> None:
        """`outputs`: the only rows whose result is read, if not all are; `stream` goes on with these."""
        ops, (modulation, scales) = self.ops, known
        static = _static(weights, scales)
        shift, scale, gate = modulation.chunk(3, dim=-1)
        normed = stream.normed(shift, scale, quantize=weights.qkv.quantized, static=static)
        # Queries of all, since one product gives them with keys and values; without they would be a 36th of a block.
        joint = ops.write_all_qkv(ops.linear(normed, weights.qkv), weights.norm, rope, joint)
        if outputs is not None:
            joint, normed = joint.only(outputs), rows_of(normed, outputs)
            stream.narrow(outputs)
            if not stream.tokens:  # of a share, whose keys and values others wait for
                ops.attention(joint)
                return
        attend = partial(ops.attention, joint)
        joined = ops.join_linear_gelu(attend, normed, weights.mlp_in, quantize=weights.out.quantized, static=static)
        stream.add(gate, ops.linear(joined, weights.out))


_Known = tuple[Tensor, Tensor | None]
"""Of a stream in a block, before it is computed: its modulation, and the scales of its MLP where there are any."""


def _static(weights: StreamWeights | SingleWeights, scales: Tensor | None) -> Tensor | None:
    """The scales of an MLP whose first matrix has one scale, too; those of a float8 file may have one per row."""
    weight = weights.mlp_in.weight
    return scales if isinstance(weight, Quantized) and weight.scale.numel() == 1 else None


class _Residual:
    """A stream whose last update waits for the norm after it, which adds it in the same pass."""

    def __init__(self, ops: Ops, stream: Tensor) -> None:
        self._ops = ops
        self._stream = stream
        self._waiting: tuple[Tensor, Tensor] | None = None
        self.tokens = stream.shape[1]

    def narrow(self, rows: slice) -> None:
        """Go on with `rows` alone, right after a norm."""
        self._stream = self._stream[:, rows]
        self.tokens = self._stream.shape[1]

    def add(self, gate: Tensor, update: Tensor) -> None:
        self._waiting = gate, update

    def normed(self, shift: Tensor, scale: Tensor, *, quantize: bool, static: Tensor | None = None) -> Activations:
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return self._ops.norm_modulate(self._stream, shift, scale, quantize=quantize, static=static)
        return self._ops.add_norm_modulate(self._stream, *waiting, shift, scale, quantize=quantize, static=static)

    def finish(self) -> None:
        """Add what waits, where no norm follows."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._ops.add_gated(self._stream, *waiting)


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
        sigma, until = self._sigmas[index : index + 2]
        kind = self._kind(index)
        if kind == "skipped" and self._velocities is not None:
            velocity = self._velocities.skipped(sigma, until)
        else:
            velocity = self._computed(index, image, text)
            if self._velocities is not None:
                velocity = self._velocities.computed(sigma, until, velocity)
        self.kinds.append(kind)
        return velocity

    def elsewhere(self, index: int, image: Tensor) -> Tensor:
        """In place of `step` where another process runs this branch: a tensor for its velocity, with nothing in it."""
        self.kinds.append(self._kind(index))
        weight = self._engine.weights.output.weight
        assert isinstance(weight, Tensor)
        return image.new_empty(len(image), self._prepared.image_tokens, len(weight), dtype=weight.dtype)

    def _kind(self, index: int) -> StepKind:
        computed = self._schedule is None or index in self._schedule.computed or not self.kinds
        return "full" if computed else "skipped"

    def _computed(self, index: int, image: Tensor, text: Tensor) -> Tensor:
        if self._text is None or not self._text.is_of(text):
            # Writes to tensors of inference mode are not counted, so those are embedded at every step.
            version = None if text.is_inference() else text._version
            self._text = _EmbeddedText(text, version, self._engine.embed_text(text))
        full_precision = index in self._full_precision
        return self._engine.step(self._prepared, index, image, self._text.embedded, full_precision=full_precision)
