"""`whole_compile`: the transformer as one graph and the VAE's decoder, both with max-autotune and CUDA graphs."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.patching import keep_attribute, set_attribute
from kontext_fast.optimizations.techniques.compile import Compile

if TYPE_CHECKING:
    from kontext_fast.pipeline.device import Machine

_FLAGS = {
    "conv_1x1_as_mm": True,
    "epilogue_fusion": False,
    "coordinate_descent_tuning": True,
    "coordinate_descent_check_all_directions": True,
}


class WholeCompile(Optimization):
    """`torch.compile(mode="max-autotune", fullgraph=True)`, in place, with the flags of inductor that flux-fast sets.

    CUDA graphs overwrite the output of the previous call, so this does not work with true CFG.
    """

    name: ClassVar[str] = "whole_compile"
    summary: ClassVar[str] = "transformer and VAE decoder through torch.compile, whole, max-autotune"
    effect: ClassVar[Effect] = Effect.NUMERIC
    phase: ClassVar[Phase] = Phase.COMPILE

    def hardware_refusal(self, machine: Machine) -> str | None:
        """max-autotune and CUDA graphs need a GPU."""
        if machine.device != "cuda":
            return f"{self.name} tunes for a GPU; run it on one"
        return Compile(mode="whole").refusal(machine)

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Compile on first use; the flags apply to the whole process until `undo` is closed."""
        import torch
        from torch._inductor import config

        for name, value in _FLAGS.items():
            undo.callback(setattr, config, name, getattr(config, name))
            setattr(config, name, value)
        keep_attribute(pipe.transformer, "_compiled_call_impl", undo)
        pipe.transformer.compile(mode="max-autotune", fullgraph=True)
        decode = torch.compile(pipe.vae.decode, mode="max-autotune", fullgraph=True)
        set_attribute(pipe.vae, "decode", decode, undo)
        return dict(_FLAGS)
