"""`channels_last`: keeps the VAE's convolution weights with channels innermost, as the fast kernels want them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, ClassVar

from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase


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


def _restore_strides(weight: Any, strides: tuple[int, ...]) -> None:
    import torch

    # Not `.contiguous()`: a 1x1 kernel counts as contiguous in either layout, and its strides pick the kernel.
    original = torch.empty_strided(weight.shape, strides, dtype=weight.dtype, device=weight.device)
    weight.data = original.copy_(weight.data)
