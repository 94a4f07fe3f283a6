"""The weights of a diffusers `FluxTransformer2DModel` as the engine reads them: few wide matrices, optionally in fp8.

Query, key and value of a stream are one matrix. The last layer of a single block already reads attention and MLP side
by side.

In fp8 and int8, the matrices inside of the blocks are quantized: more than 99 % of a step's work in linear layers. What
stays in the checkpoint's dtype, and why:
- the embedders of image and text: every block reads what they make, so their error would be in all of them, for
  0.01 % of the work;
- the embedding of time, guidance and pooled text and all modulations: they scale and gate every channel of every
  token, and run once per request for all steps;
- the output layer: its result is the velocity itself, so no later layer can even out its error; 0.001 % of the work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kontext_fast.engine.host_memory import HostMemory
from kontext_fast.engine.ops import Linear, Precision, QKNorm, Quantized, quantize, quantize_int8, quantize_whole
from kontext_fast.errors import InvalidInput

ROUNDINGS: Mapping[str, Callable[[Tensor], Quantized]] = {"fp8": quantize, "int8": quantize_int8}
"""What quantizes the matrices of a precision that does."""

_STATIC = ".mlp_in"
"""End of the names of matrices that have one scale in fp8, not one per row: their products round what they give, by
scales of whole tensors."""

Quantizer = Callable[[str, Sequence[Tensor]], Quantized]
"""(name, parts) -> the quantized matrix of that name, which has the parts, [out, in] each, one below the other."""


STORED_SCALES = "_kontext_fast_stored_scales"
"""Attribute of a transformer that was read from a float8 file: by name of a parameter, the scales of its rows there,
[rows] float32. Not a buffer, since `to(dtype)` would round it."""


@dataclass(frozen=True)
class StreamWeights:
    """One stream (image or text) of a double block."""

    modulation: Linear
    """[6 W, W]: shift, scale and gate of attention, then of the MLP."""
    qkv: Linear
    norm: QKNorm
    out: Linear
    mlp_in: Linear
    mlp_out: Linear


@dataclass(frozen=True)
class DoubleWeights:
    """A block in which image and text tokens have weights of their own."""

    text: StreamWeights
    image: StreamWeights


@dataclass(frozen=True)
class SingleWeights:
    """A block in which all tokens have the same weights, and attention and MLP run side by side."""

    modulation: Linear
    """[3 W, W]: shift, scale and gate."""
    qkv: Linear
    norm: QKNorm
    mlp_in: Linear
    out: Linear
    """[W, W + M], attention first."""


@dataclass(frozen=True)
class EngineWeights:
    """All weights of a transformer."""

    heads: int
    head_dim: int
    precision: Precision
    dtype: torch.dtype
    device: torch.device
    embed_image: Linear
    embed_text: Linear
    embed_conditions: Any
    """The transformer's own module: (timestep, [guidance,] pooled text) -> [N, W]."""
    embed_positions: Any
    """The transformer's own module: ids [S, 3] -> cos and sin, [S, D] each."""
    doubles: tuple[DoubleWeights, ...]
    singles: tuple[SingleWeights, ...]
    final_modulation: Linear
    """[2 W, W]: scale, then shift."""
    output: Linear
    sources: SourceWeights
    """The parameters that these weights were taken from."""
    quantized: Mapping[str, Quantized]
    """Every quantized matrix by name; empty in bf16."""


def take_weights(
    transformer: Any,
    precision: Precision,
    undo: ExitStack,
    *,
    device: torch.device | None = None,
    quantizer: Quantizer | None = None,
    modulations_in_host_memory: bool = False,
) -> EngineWeights:
    """Read the weights of `transformer` without a second copy on its device; `undo` restores them.

    What is fused without quantizing becomes the memory that the transformer's own parameters look into. What is
    quantized replaces the original on the device, which waits in host memory (on a CPU it stays where it is).
    `device` is where the engine computes, if the transformer is elsewhere: its matrices are brought there one at a
    time, quantized there, and what is read as it is stays there.
    `quantizer` may supply matrices that were quantized before. The blocks' modulations, which run once per request, may
    stay in host memory.
    Raises InvalidInput if the transformer is not plain: LoRA adapters that are not fused, quantized layers, other
    attention processors, float16.
    """
    require_plain(transformer)
    sources = SourceWeights(transformer, undo, device)
    taker = _Taker(sources, precision, quantizer or sources.quantizer(precision), modulations_in_host_memory)
    final = transformer.norm_out
    first = transformer.x_embedder.weight
    weights = EngineWeights(
        heads=transformer.config.num_attention_heads,
        head_dim=transformer.config.attention_head_dim,
        precision=precision,
        dtype=first.dtype,
        device=sources.device,
        embed_image=taker.plain(transformer.x_embedder),
        embed_text=taker.plain(transformer.context_embedder),
        embed_conditions=taker.module(transformer.time_text_embed),
        embed_positions=transformer.pos_embed,
        doubles=tuple(taker.double(f"double.{i}", block) for i, block in enumerate(transformer.transformer_blocks)),
        singles=tuple(
            taker.single(f"single.{i}", block) for i, block in enumerate(transformer.single_transformer_blocks)
        ),
        final_modulation=taker.plain(final.linear),
        output=taker.plain(transformer.proj_out),
        sources=sources,
        quantized=taker.quantized,
    )
    sources.snapshot()
    return weights


def quantized_copy(weights: EngineWeights, precision: Precision, quantizer: Quantizer | None = None) -> EngineWeights:
    """`weights`, which are not quantized, in fp8 or int8: the originals stay, and what is never quantized is shared.

    `quantizer` may supply matrices that were quantized before. From now on `weights.sources` notices changes of the
    originals that were quantized.
    """
    quantize_named, quantized = quantizer or weights.sources.quantizer(precision), {}

    def of(name: str, layer: Linear) -> Linear:
        assert isinstance(layer.weight, Tensor)
        quantized[name] = quantize_named(name, [layer.weight])
        return Linear(quantized[name], layer.bias)

    def of_stream(name: str, stream: StreamWeights) -> StreamWeights:
        return replace(
            stream,
            qkv=of(f"{name}.qkv", stream.qkv),
            out=of(f"{name}.out", stream.out),
            mlp_in=of(f"{name}.mlp_in", stream.mlp_in),
            mlp_out=of(f"{name}.mlp_out", stream.mlp_out),
        )

    def of_single(name: str, block: SingleWeights) -> SingleWeights:
        return replace(
            block,
            qkv=of(f"{name}.qkv", block.qkv),
            mlp_in=of(f"{name}.mlp_in", block.mlp_in),
            out=of(f"{name}.out", block.out),
        )

    doubles = tuple(
        DoubleWeights(of_stream(f"double.{i}.text", block.text), of_stream(f"double.{i}.image", block.image))
        for i, block in enumerate(weights.doubles)
    )
    singles = tuple(of_single(f"single.{i}", block) for i, block in enumerate(weights.singles))
    weights.sources.were_quantized()
    return replace(weights, precision=precision, doubles=doubles, singles=singles, quantized=quantized)


def as_stored(parts: Sequence[Tensor], scales: Tensor) -> Quantized | None:
    """The float8 numbers whose products with `scales` [rows] are `parts`; None where the parts were changed since.

    A product that was rounded to bfloat16 is within 2^-9 of what it was, and neighbours in e4m3 are 2^-4 apart.
    """
    whole = torch.cat(list(parts))
    scale = scales.to(whole.device)[:, None]
    values = (whole.float() / scale).to(torch.float8_e4m3fn)
    if not torch.equal((values.float() * scale).to(whole.dtype), whole):
        return None
    return Quantized(values.contiguous(), scale, whole.dtype)


def _quantized(rounding: Callable[[Tensor], Quantized], parts: Sequence[Tensor]) -> Quantized:
    # Part by part: rows have scales of their own, so this equals quantizing the whole, in less memory.
    rows = [rounding(part) for part in parts]
    return Quantized(torch.cat([row.values for row in rows]), torch.cat([row.scale for row in rows]), rows[0].dtype)


class _Taker:
    """Converts one layer after the other."""

    def __init__(
        self, sources: SourceWeights, precision: Precision, quantizer: Quantizer, modulations_in_host_memory: bool
    ) -> None:
        self._sources = sources
        self._modulations_in_host_memory = modulations_in_host_memory
        self._precision = precision
        self._quantizer = quantizer
        self.quantized: dict[str, Quantized] = {}

    def plain(self, layer: Any) -> Linear:
        """A layer that is never quantized."""
        return Linear(
            self._sources.fuse([layer.weight]), None if layer.bias is None else self._sources.fuse([layer.bias])
        )

    def modulation(self, layer: Any) -> Linear:
        """A layer that runs once per request."""
        if not self._modulations_in_host_memory:
            return self.plain(layer)
        for parameter in layer.parameters():
            self._sources.keep_in_host_memory(parameter)
        return Linear(layer.weight.data, None if layer.bias is None else layer.bias.data)

    def module(self, layers: Any) -> Any:
        """A part of the transformer that the engine calls unchanged."""
        for parameter in layers.parameters():
            self._sources.fuse([parameter])
        return layers

    def norm(self, query: Any, key: Any) -> QKNorm:
        return QKNorm(self._sources.fuse([query.weight]), self._sources.fuse([key.weight]), float(query.eps))

    def dense(self, name: str, *layers: Any) -> Linear:
        """`layers`, which read the same input, as one; quantized in fp8 and int8."""
        biases = [layer.bias for layer in layers]
        bias = None if biases[0] is None else self._sources.fuse(biases)
        weights = [layer.weight for layer in layers]
        self._sources.add_dense(name, weights)
        if self._precision == "bf16":
            return Linear(self._sources.fuse(weights), bias)
        quantized = self._quantizer(name, [weight.data.to(self._sources.device) for weight in weights])
        for weight in weights:
            self._sources.replaced(weight)
        self.quantized[name] = quantized
        return Linear(quantized, bias)

    def double(self, name: str, block: Any) -> DoubleWeights:
        attention = block.attn
        return DoubleWeights(
            text=StreamWeights(
                modulation=self.modulation(block.norm1_context.linear),
                qkv=self.dense(f"{name}.text.qkv", attention.add_q_proj, attention.add_k_proj, attention.add_v_proj),
                norm=self.norm(attention.norm_added_q, attention.norm_added_k),
                out=self.dense(f"{name}.text.out", attention.to_add_out),
                mlp_in=self.dense(f"{name}.text.mlp_in", block.ff_context.net[0].proj),
                mlp_out=self.dense(f"{name}.text.mlp_out", block.ff_context.net[2]),
            ),
            image=StreamWeights(
                modulation=self.modulation(block.norm1.linear),
                qkv=self.dense(f"{name}.image.qkv", attention.to_q, attention.to_k, attention.to_v),
                norm=self.norm(attention.norm_q, attention.norm_k),
                out=self.dense(f"{name}.image.out", attention.to_out[0]),
                mlp_in=self.dense(f"{name}.image.mlp_in", block.ff.net[0].proj),
                mlp_out=self.dense(f"{name}.image.mlp_out", block.ff.net[2]),
            ),
        )

    def single(self, name: str, block: Any) -> SingleWeights:
        attention = block.attn
        return SingleWeights(
            modulation=self.modulation(block.norm.linear),
            qkv=self.dense(f"{name}.qkv", attention.to_q, attention.to_k, attention.to_v),
            norm=self.norm(attention.norm_q, attention.norm_k),
            mlp_in=self.dense(f"{name}.mlp_in", block.proj_mlp),
            out=self.dense(f"{name}.out", block.proj_out),
        )


_SAMPLES = 64
"""Numbers compared per quantized matrix; a change of a matrix changes nearly all of its numbers."""

_REPAIR = "revert the acceleration, change the pipeline, then accelerate again"


class SourceWeights:
    """The parameters of one transformer; `undo` restores the memory and the device of each, bit-identical."""

    def __init__(self, transformer: Any, undo: ExitStack, device: torch.device | None = None) -> None:
        """`device`: where the engine reads them; None: where they are."""
        self._undo = undo
        here: torch.device = transformer.x_embedder.weight.device
        self._foreign = device is not None and device != here
        self.device: torch.device = here if device is None else device
        self._parameters: dict[str, nn.Parameter] = dict(transformer.named_parameters())
        scales = vars(transformer).get(STORED_SCALES, {})
        self._scales_of = {
            id(self._parameters[name]): rows for name, rows in scales.items() if name in self._parameters
        }
        self._scales: dict[str, Tensor] = {}
        self.as_stored = 0
        """Matrices in fp8 whose numbers are those of the file that the transformer was read from."""
        self._addresses: dict[str, int] | None = None
        self.dense: list[nn.Parameter] = []
        """What fp8 and int8 quantize, whether this engine does or not."""
        self._replaced: list[nn.Parameter] = []
        self._waiting: list[nn.Parameter] = []
        self._sample: Tensor | None = None
        self._host_memory: HostMemory | None = None

    @property
    def host_bytes(self) -> int:
        """Bytes of parameters that are kept in host memory: those that were replaced, and those that are read there."""
        kept = (*self._replaced, *self._waiting)
        return sum(parameter.data.nbytes for parameter in kept if parameter.device != self.device)

    def add_dense(self, name: str, parameters: Sequence[nn.Parameter]) -> None:
        """Note that `parameters`, one below the other, are the matrix `name`, which fp8 and int8 quantize."""
        self.dense += parameters
        scales = [self._scales_of.get(id(parameter)) for parameter in parameters]
        if all(rows is not None for rows in scales):
            self._scales[name] = torch.cat([rows for rows in scales if rows is not None])

    def quantizer(self, precision: Precision) -> Quantizer:
        """What rounds matrices to `precision`; those of a float8 file stay in fp8 what they are in the file."""

        def rounded(name: str, parts: Sequence[Tensor]) -> Quantized:
            scales = self._scales.get(name) if precision == "fp8" else None
            is_static = precision == "fp8" and name.endswith(_STATIC)
            if scales is not None and (stored := as_stored(parts, scales)) is not None:
                self.as_stored += 1
                if is_static and bool((stored.scale == stored.scale[0]).all()):
                    return replace(stored, scale=stored.scale[:1])
                return stored
            return _quantized(quantize_whole if is_static else ROUNDINGS[precision], parts)

        return rounded

    def fuse(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """The parameters one below the other, on the device of the engine; each becomes a view into the result."""
        if len(parameters) == 1 and not self._foreign:
            return parameters[0].data
        return fuse_parameters(parameters, self._undo, self.device)

    def replaced(self, parameter: nn.Parameter) -> None:
        """Record that `parameter` is replaced by a quantized matrix, and free its memory on a GPU."""
        self._replaced.append(parameter)
        self._move_to_host(parameter)

    def keep_in_host_memory(self, parameter: nn.Parameter) -> None:
        """Have `parameter` wait in host memory, where it is read from, and free its memory on a GPU."""
        self._waiting.append(parameter)
        self._move_to_host(parameter)

    def _move_to_host(self, parameter: nn.Parameter) -> None:
        if parameter.device.type != "cpu":
            self._host_memory = self._host_memory or HostMemory()
            self._undo.callback(_move, parameter, parameter.device)
            parameter.data = self._host_memory.copy(parameter.data)

    def were_quantized(self) -> None:
        """Record that the dense parameters were quantized and stay in use where they are; call it after `snapshot`."""
        self._replaced = list(self.dense)
        self._sample = self._sampled()

    def snapshot(self) -> None:
        """Remember the parameters as they are; call it once all are taken."""
        self._host_memory = None
        self._addresses = {name: parameter.data_ptr() for name, parameter in self._parameters.items()}
        self._sample = self._sampled()

    def verify(self, transformer: Any) -> None:
        """Raise InvalidInput if `transformer` has changed since `snapshot`."""
        require_no_adapters(transformer)
        now = dict(transformer.named_parameters())
        addresses = {name: parameter.data_ptr() for name, parameter in now.items()}
        if addresses != self._addresses or any(
            now[name] is not parameter for name, parameter in self._parameters.items()
        ):
            raise InvalidInput(f"The transformer was moved, converted or replaced under the engine; {_REPAIR}.")
        sample = self._sampled()
        if sample is not None and self._sample is not None and not torch.equal(sample, self._sample):
            raise InvalidInput(f"The transformer's weights changed after they were quantized; {_REPAIR}.")

    def content_hash(self) -> str:
        """Sha256 of the parameters that were quantized: names, shapes, dtypes and bits."""
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        ordered = sorted((names[id(parameter)], parameter) for parameter in self._replaced)
        with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock, and there are gigabytes of it
            digests = list(pool.map(lambda pair: _digest(*pair), ordered))
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def _sampled(self) -> Tensor | None:
        """[n] a few numbers of every replaced parameter, or None where nothing was replaced."""
        if not self._replaced:
            return None
        flat = [parameter.data.view(-1) for parameter in self._replaced]
        # An odd stride visits many rows and columns of a matrix.
        samples = torch.cat([numbers[:: max(1, len(numbers) // _SAMPLES) | 1] for numbers in flat])
        # Compared as bits, so that a NaN equals itself.
        return samples.view(torch.int16 if samples.dtype == torch.bfloat16 else torch.int32)


def fuse_parameters(parameters: Sequence[nn.Parameter], undo: ExitStack, device: torch.device | None = None) -> Tensor:
    """The parameters one below the other on `device`, theirs by default; each is a view into the result until `undo` is
    closed, so nothing is held twice there."""
    whole = torch.cat([parameter.data.to(device or parameter.device) for parameter in parameters])
    views = torch.split_with_sizes(whole, [len(parameter) for parameter in parameters])
    for parameter, view in zip(parameters, views, strict=True):
        if device is None or device == parameter.device:
            undo.callback(_own_memory, parameter)
        else:
            undo.callback(_set, parameter, parameter.data)
        parameter.data = view
    return whole


def _set(parameter: nn.Parameter, data: Tensor) -> None:
    parameter.data = data


def _own_memory(parameter: nn.Parameter) -> None:
    parameter.data = parameter.data.clone()


def _move(parameter: nn.Parameter, device: torch.device) -> None:
    parameter.data = parameter.data.to(device)


def _digest(name: str, parameter: nn.Parameter) -> str:
    bits = parameter.data.detach().cpu().contiguous().view(torch.uint8).numpy().data
    return f"{name} {tuple(parameter.shape)} {parameter.dtype} {hashlib.sha256(bits).hexdigest()}"


_DTYPES = (torch.bfloat16, torch.float32)

_LINEAR_NAMES = frozenset(
    {"x_embedder", "context_embedder", "proj_out", "proj_mlp", "proj", "linear", "to_q", "to_k", "to_v", "to_add_out"}
    | {"add_q_proj", "add_k_proj", "add_v_proj", "linear_1", "linear_2"}
)


def require_plain(transformer: Any) -> None:
    """Raise InvalidInput, with a remedy, unless the engine computes exactly what `transformer` does."""
    require_no_adapters(transformer)
    for name, layer in transformer.named_modules():
        # A parametrized layer, which is of another class, is told by who looks for everything that is on a layer.
        odd = type(layer) is not nn.Linear and "parametrizations" not in layer._modules
        if odd and hasattr(layer, "weight") and name.split(".")[-1] in _LINEAR_NAMES:
            raise InvalidInput(
                f"The engine reads plain linear layers, but {name} is a {type(layer).__name__}; "
                "load the checkpoint without quantization."
            )
        if getattr(layer, "fused_projections", False):
            raise InvalidInput(
                "The transformer's projections are fused already; call pipe.transformer.unfuse_qkv_projections() first."
            )
    _require_ordinary_parameters(transformer)
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        _require_known_block(block)


def require_no_adapters(transformer: Any) -> None:
    """Raise InvalidInput if a LoRA adapter is on the transformer that is not part of its weights."""
    # Not `hasattr`, which takes microseconds for each of thousands of layers where the attribute is missing.
    if any("base_layer" in layer._modules for layer in transformer.modules()):
        raise InvalidInput(
            "The transformer has a LoRA adapter that is not fused into its weights; revert the acceleration and "
            "accelerate again, which merges it (as pipe.fuse_lora and pipe.unload_lora_weights do for good)."
        )


def _require_ordinary_parameters(transformer: Any) -> None:
    parameters = transformer.parameters()
    kinds = {(type(parameter), type(parameter.data), parameter.dtype, parameter.device) for parameter in parameters}
    classes = {(parameter, data) for parameter, data, _, _ in kinds}
    if classes != {(nn.Parameter, torch.Tensor)}:
        raise InvalidInput("The transformer's weights are quantized already; load the checkpoint without quantization.")
    if len(kinds) > 1:
        raise InvalidInput(
            "The transformer's weights have more than one precision or device; load the pipeline with one dtype, "
            "then move it with pipe.to(device)."
        )
    (_, _, dtype, _) = kinds.pop()
    if dtype not in _DTYPES:
        raise InvalidInput(
            f"The engine runs in bfloat16 or float32, not {str(dtype).removeprefix('torch.')}; "
            "load the pipeline with dtype=torch.bfloat16."
        )


def require_known_processor(processor: Any) -> None:
    """Raise InvalidInput unless `processor` is the one of diffusers for FLUX, which the engine computes the same as."""
    from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

    if type(processor) is not FluxAttnProcessor:
        raise InvalidInput(
            f"The engine replaces the transformer's own attention, but here it is a {type(processor).__name__} of "
            f"{type(processor).__module__}; unload what put it there (pipe.unload_ip_adapter() after an IP-Adapter, "
            "pipe.transformer.set_attn_processor(FluxAttnProcessor()) after others), then accelerate again."
        )


def _require_known_block(block: Any) -> None:
    require_known_processor(block.attn.processor)
    activations = [block.act_mlp] if hasattr(block, "act_mlp") else [block.ff.net[0], block.ff_context.net[0]]
    for activation in activations:
        if getattr(activation, "approximate", None) != "tanh":
            raise InvalidInput("The engine knows the MLP of FLUX (GELU in its tanh form) only; use another preset.")
