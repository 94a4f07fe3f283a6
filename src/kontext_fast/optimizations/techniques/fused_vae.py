"""`fused_vae`: group norm and SiLU of the VAE in one operation that keeps channels innermost.

Between two convolutions PyTorch runs a norm and an activation. On a GPU its group norm wants channels outermost, so
that with `channels_last` alone every norm is followed and preceded by a transposition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, ClassVar

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.call_tracking import track_calls
from kontext_fast.optimizations.patching import replace_method, require_undisturbed
from kontext_fast.pipeline.device import Machine


class FusedVae(Optimization):
    """Rounds once where norm and activation round twice. On a CPU plain PyTorch runs, as without it."""

    name: ClassVar[str] = "fused_vae"
    summary: ClassVar[str] = "the VAE's norms and activations in one operation, without transposing"
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
        return _precompile_calls([norm for norm, _ in _pairs(pipe.vae)], device) if device.type == "cuda" else ()

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Replace `forward` of the norms and activations on the instance `pipe.vae`.

        Raises InvalidInput if its blocks have other norms or activations than a FLUX VAE, and, at calls too, where
        something is on them that would see another input or output than without this.
        """
        pairs = list(_pairs(pipe.vae))
        named = () if pipe.vae is None else pipe.vae.named_modules(remove_duplicate=False)
        names = {module: f"vae.{name}" for name, module in named}
        replaced = [(names[module], module) for pair in pairs for module in pair]
        require_undisturbed(replaced, self.name)
        calls = track_calls(pipe, undo)
        calls.on_begin(lambda _: require_undisturbed(replaced, self.name, replaced=True), undo)
        fused = pipe._execution_device.type == "cuda"
        norm_silu = _fused if fused else _plain

        def both(original: Any, args: tuple[Any, ...], _: dict[str, Any]) -> Any:
            return norm_silu(original.__self__, args[0])

        for norm, _ in pairs:
            replace_method(norm, "forward", both, undo)
        for activation in {id(activation): activation for _, activation in pairs}.values():
            # The norm before it has applied it.
            replace_method(activation, "forward", lambda _original, args, _: args[0], undo)
        return {"norms": len(pairs), "kernel": "fused" if fused else "portable"}


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


def _precompile_calls(norms: Sequence[Any], device: Any) -> Sequence[Callable[[], object]]:
    """Calls that compile the kernel for every width of `norms`; they may run concurrently."""
    import torch

    from kontext_fast.engine.kernels.group_norm_silu import group_norm_silu

    def launch(norm: Any) -> None:
        # The weights may still wait in host memory.
        weight, bias = norm.weight.to(device), norm.bias.to(device)
        x = torch.zeros(1, norm.num_channels, 8, 8, dtype=weight.dtype, device=device)
        group_norm_silu(x, norm.num_groups, weight, bias, norm.eps)

    one_of_each = {(norm.num_channels, norm.num_groups): norm for norm in norms}
    return [partial(launch, norm) for norm in one_of_each.values()]


def _fused(norm: Any, x: Any) -> Any:
    from kontext_fast.engine.kernels.group_norm_silu import group_norm_silu

    return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def _plain(norm: Any, x: Any) -> Any:
    from torch.nn import functional

    return functional.silu(functional.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps))
