"""The VAE: `channels_last` keeps convolution weights with channels innermost, as the fast kernels want them, and
`fused_vae` what lies between convolutions, in few operations.

Between two convolutions PyTorch runs a norm and an activation. On a GPU its group norm wants channels outermost, so
that with `channels_last` alone every norm is followed and preceded by a transposition. Biases and residuals are added
in passes of their own, and attention over one head of 512 channels has no fast kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, ClassVar

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.call_tracking import track_calls
from kontext_fast.optimizations.patching import Replacement, replace_method, require_undisturbed
from kontext_fast.pipeline.device import Machine

_SCORES = 2**26
"""Of attention that are in memory at once, in float32: 256 MiB."""


class ChannelsLast(Optimization):
    """The VAE in torch.channels_last. Convolutions then choose other kernels, which round differently."""

    name: ClassVar[str] = "channels_last"
    summary: ClassVar[str] = "VAE weights with channels innermost, the layout fast convolution kernels want"
    effect: ClassVar[Effect] = Effect.NUMERIC
    phase: ClassVar[Phase] = Phase.LAYOUT

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Change the strides, never the values, of every 4-dimensional weight of `pipe.vae`."""
        import torch

        changed = 0
        for weight in () if pipe.vae is None else pipe.vae.parameters():
            if weight.dim() != 4:
                continue
            undo.callback(_restore_strides, weight, weight.stride())
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
            changed += 1
        return {"weights": changed}


class FusedVae(Optimization):
    """Rounds once where norm and activation round twice. On a CPU plain PyTorch runs, as without it.

    On a GPU, biases, residuals and images of twice the side are exact, and attention is two products around a softmax.
    """

    name: ClassVar[str] = "fused_vae"
    summary: ClassVar[str] = "what lies between the VAE's convolutions in few operations, without transposing"
    effect: ClassVar[Effect] = Effect.NUMERIC
    phase: ClassVar[Phase] = Phase.KERNELS
    requires: ClassVar[frozenset[str]] = frozenset({"channels_last"})

    def label_on(self, machine: Machine) -> str | None:
        """That a CPU runs plain PyTorch."""
        return "fused_vae: plain PyTorch on a CPU, no speed" if machine.device == "cpu" else None

    def refusal(self, machine: Machine) -> str | None:
        """A GPU needs the fused kernels."""
        from kontext_fast.engine.dispatch import has_fused_kernels, refusal

        if machine.device == "cuda" and not has_fused_kernels():
            return "fused_vae on a GPU needs Triton; run `pip install triton` or leave fused_vae out"
        return refusal(machine.device, machine.capability, "bf16")

    def precompile_calls(self, pipe: Any) -> Sequence[Callable[[], object]]:
        """The kernels, for every width that the VAE has."""
        device = pipe._execution_device
        return _precompile_calls(pipe.vae, device) if _has_kernels(device) else ()

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Replace `forward` of the norms and activations on the instance `pipe.vae`; on a GPU of its convolutions,
        residual blocks, attention and what doubles images as well.

        Raises InvalidInput if its blocks have other norms or activations than a FLUX VAE, and, at calls too, where
        something is on them that would see another input or output than without this.
        """
        pairs = list(_pairs(pipe.vae))
        fused = _has_kernels(pipe._execution_device)
        streams = list(_streams(pipe.vae)) if fused else []
        named = () if pipe.vae is None else pipe.vae.named_modules()
        names = {module: f"vae.{name}" for name, module in named}
        parts = [*(module for pair in pairs for module in pair), *(module for module, _ in streams)]
        replaced = [(names[module], module) for module in parts]
        require_undisturbed(replaced, self.name)
        calls = track_calls(pipe, undo)
        calls.on_begin(lambda _: require_undisturbed(replaced, self.name, replaced=True), undo)
        norm_silu = _fused if fused else _plain

        def both(original: Any, args: tuple[Any, ...], _: dict[str, Any]) -> Any:
            return norm_silu(original.__self__, args[0])

        for norm, _ in pairs:
            replace_method(norm, "forward", both, undo)
        for activation in {id(activation): activation for _, activation in pairs}.values():
            # The norm before it has applied it.
            replace_method(activation, "forward", lambda _original, args, _: args[0], undo)
        for module, replacement in streams:
            replace_method(module, "forward", replacement, undo)
        return {"norms": len(pairs), "kernel": "fused" if fused else "portable"}


def _has_kernels(device: Any) -> bool:
    return bool(device.type == "cuda")


def _pairs(vae: Any) -> Iterator[tuple[Any, Any]]:
    """Every group norm that is followed by SiLU, with the latter."""
    from diffusers.models.autoencoders.vae import Decoder, Encoder
    from diffusers.models.resnet import ResnetBlock2D
    from torch.nn import GroupNorm, SiLU

    for part in () if vae is None else vae.modules():
        if isinstance(part, ResnetBlock2D):
            # An embedding of time would pass through the same activation.
            plain = part.time_emb_proj is None and part.upsample is None and part.downsample is None
            pairs = [(part.norm1, part.nonlinearity), (part.norm2, part.nonlinearity)] if plain else [(None, None)]
        elif isinstance(part, Encoder | Decoder):
            pairs = [(part.conv_norm_out, part.conv_act)]
        else:
            continue
        for norm, activation in pairs:
            if type(norm) is not GroupNorm or type(activation) is not SiLU or not norm.affine:
                raise InvalidInput(
                    "The VAE has other norms or activations than that of FLUX; leave fused_vae out of the preset."
                )
            yield norm, activation


def _streams(vae: Any) -> Iterator[tuple[Any, Replacement]]:
    """The convolutions, residual blocks, doublings and attention whose forward can be fused, with what replaces it."""
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.upsampling import Upsample2D
    from torch.nn import Conv2d, GroupNorm

    for part in () if vae is None else vae.modules():
        if type(part) is Conv2d and part.bias is not None and part.padding_mode == "zeros":
            yield part, _biased
        elif isinstance(part, ResnetBlock2D):
            convolutions = [part.conv1, part.conv2, *([] if part.conv_shortcut is None else [part.conv_shortcut])]
            if part.output_scale_factor == 1 and all(
                type(each) is Conv2d and each.bias is not None for each in convolutions
            ):
                yield part, _block
        elif isinstance(part, Upsample2D):
            if part.interpolate and part.use_conv and not part.use_conv_transpose and part.norm is None:
                yield part, _doubled
        elif isinstance(part, Attention):
            unusual = (part.spatial_norm, part.norm_q, part.norm_k, part.norm_cross)
            plain = part.residual_connection and part.rescale_output_factor == 1 and not any(unusual)
            if plain and part.heads == 1 and type(part.group_norm) is GroupNorm:
                yield part, _attended


def _without_bias(convolution: Any, x: Any) -> Any:
    from torch.nn import functional

    how = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
    return functional.conv2d(x, convolution.weight, None, *how)


def _convolved(convolution: Any, x: Any, residual: Any = None) -> Any:
    from kontext_fast.engine.kernels.between_convolutions import add_bias

    return add_bias(_without_bias(convolution, x), convolution.bias, residual)


def _biased(original: Any, args: tuple[Any, ...], _: dict[str, Any]) -> Any:
    return _convolved(original.__self__, args[0])


def _block(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    block, x = original.__self__, args[0]
    if any(argument is not None for argument in (*args[1:], *kwargs.values())):  # of a time
        return original(*args, **kwargs)
    hidden = block.conv1(block.nonlinearity(block.norm1(x)))
    hidden = block.dropout(block.nonlinearity(block.norm2(hidden)))
    return _convolved(block.conv2, hidden, x if block.conv_shortcut is None else block.conv_shortcut(x))


def _doubled(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from kontext_fast.engine.kernels.between_convolutions import double_sides

    upsample = original.__self__
    if any(argument is not None for argument in (*args[1:], *kwargs.values())):  # another size than twice that
        return original(*args, **kwargs)
    convolution = upsample.conv if upsample.name == "conv" else upsample.Conv2d_0
    return convolution(double_sides(args[0]))


def _attended(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from diffusers.models.attention_processor import AttnProcessor2_0

    attention, x = original.__self__, args[0]
    if (
        type(attention.processor) is not AttnProcessor2_0
        or len(args) > 1
        or any(value is not None for value in kwargs.values())
    ):
        return original(*args, **kwargs)
    batch, channels, height, width = x.shape
    rows = attention.group_norm(x.view(batch, channels, height * width)).transpose(1, 2)
    hidden = _attention(attention.to_q(rows), attention.to_k(rows), attention.to_v(rows))
    hidden = attention.to_out[1](attention.to_out[0](hidden))
    return hidden.transpose(1, 2).reshape(batch, channels, height, width) + x


def _attention(query: Any, key: Any, value: Any) -> Any:
    """[B, rows, C] of one head, with scores in float32, some rows at a time."""
    import torch

    from kontext_fast.engine.kernels.between_convolutions import softmax

    product: Any = torch.bmm
    keys, attended = key.transpose(1, 2), torch.empty_like(value)
    step = max(1, _SCORES // (len(key) * key.shape[1]))
    wide = {} if query.dtype == torch.float32 else {"out_dtype": torch.float32}
    for start in range(0, query.shape[1], step):
        scores = product(query[:, start : start + step], keys, **wide)
        attended[:, start : start + step] = product(softmax(scores, query.shape[-1] ** -0.5, value.dtype), value)
    return attended


def _precompile_calls(vae: Any, device: Any) -> Sequence[Callable[[], object]]:
    """Calls that compile the kernels for every width of `vae`; they may run concurrently."""
    import torch

    from kontext_fast.engine.kernels.between_convolutions import add_bias, double_sides, softmax
    from kontext_fast.engine.kernels.group_norm_silu import group_norm_silu

    def zeros(vector: Any, channels: int) -> Any:
        x = torch.zeros(1, channels, 8, 8, dtype=vector.dtype, device=device)
        return x.contiguous(memory_format=torch.channels_last)

    def norm_silu(norm: Any) -> None:
        # The weights may still wait in host memory.
        weight, bias = norm.weight.to(device), norm.bias.to(device)
        group_norm_silu(zeros(weight, norm.num_channels), norm.num_groups, weight, bias, norm.eps)

    def add(convolution: Any, *, residual: bool) -> None:
        bias = convolution.bias.to(device)
        x = zeros(bias, convolution.out_channels)
        add_bias(x, bias, x.clone() if residual else None)

    def double(upsample: Any) -> None:
        double_sides(zeros(next(upsample.parameters()), upsample.channels))

    norms = {(norm.num_channels, norm.num_groups): partial(norm_silu, norm) for norm, _ in _pairs(vae)}
    streams: dict[Any, Callable[[], object]] = {}
    for part, replacement in _streams(vae):
        if replacement is _block:
            streams[_block, part.conv2.out_channels] = partial(add, part.conv2, residual=True)
        elif replacement is _doubled:
            streams[_doubled, part.channels] = partial(double, part)
        elif replacement is _attended:
            for pixels in (16, 12):  # in a number that 16 divides, and in another
                scores = torch.zeros(1, 1, pixels, device=device)
                streams[_attended, pixels] = partial(softmax, scores, 1.0, part.to_v.weight.dtype)
        else:
            streams[_biased, part.out_channels] = partial(add, part, residual=False)
    return [*norms.values(), *streams.values()]


def _fused(norm: Any, x: Any) -> Any:
    from kontext_fast.engine.kernels.group_norm_silu import group_norm_silu

    return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def _plain(norm: Any, x: Any) -> Any:
    from torch.nn import functional

    return functional.silu(functional.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps))


def _restore_strides(weight: Any, strides: tuple[int, ...]) -> None:
    import torch

    # Not `.contiguous()`: a 1x1 kernel counts as contiguous in either layout, and its strides pick the kernel.
    original = torch.empty_strided(weight.shape, strides, dtype=weight.dtype, device=weight.device)
    weight.data = original.copy_(weight.data)
