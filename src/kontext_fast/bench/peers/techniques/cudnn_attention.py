"""`cudnn_attention`: attention through cuDNN's kernels, as diffusers selects them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.patching import keep_attribute

if TYPE_CHECKING:
    from kontext_fast.pipeline.device import Machine

_BACKEND = "_native_cudnn"


class CudnnAttention(Optimization):
    """`set_attention_backend("_native_cudnn")`."""

    name: ClassVar[str] = "cudnn_attention"
    summary: ClassVar[str] = "attention through cuDNN (diffusers set_attention_backend)"
    effect: ClassVar[Effect] = Effect.NUMERIC
    phase: ClassVar[Phase] = Phase.WEIGHTS

    def hardware_refusal(self, machine: Machine) -> str | None:
        """cuDNN's attention needs an NVIDIA GPU of compute capability 8.0."""
        if machine.device == "cuda" and machine.capability is not None and machine.capability >= (8, 0):
            return None
        return f"{self.name} needs an NVIDIA GPU of compute capability 8.0 or later; run it on one"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Set it on every attention of the transformer; diffusers sets its process-wide default as well."""
        from diffusers.models.attention_dispatch import _AttentionBackendRegistry

        default, _ = _AttentionBackendRegistry.get_active_backend()
        undo.callback(_AttentionBackendRegistry.set_active_backend, default)
        for processor in pipe.transformer.attn_processors.values():
            keep_attribute(processor, "_attention_backend", undo)
        pipe.transformer.set_attention_backend(_BACKEND)
        return {"backend": _BACKEND}
