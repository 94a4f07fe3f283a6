"""Compiling by diffusers and by PyTorch: blocks, repeated blocks, and the whole transformer."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from kontext_fast.bench.peers.block_tracer import blocks_of
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.patching import keep_attribute, set_attribute
from kontext_fast.optimizations.techniques.compile import Compile

if TYPE_CHECKING:
    from kontext_fast.pipeline.device import Machine


class CompiledBlocks(Optimization):
    """The forward of each block through torch.compile, applied before any cache."""

    name: ClassVar[str] = "compiled_blocks"
    summary: ClassVar[str] = "blocks through torch.compile, below a cache's hooks"
    effect: ClassVar[Effect] = Effect.NUMERIC
    phase: ClassVar[Phase] = Phase.LAYOUT

    def hardware_refusal(self, machine: Machine) -> str | None:
        """Only the GPU part of a recipe has it."""
        if machine.device != "cuda":
            return f"{self.name} is the GPU's part of a recipe; run it on one"
        return Compile().refusal(machine)

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Compile on first use."""
        import torch

        for block in blocks_of(pipe.transformer):
            set_attribute(block, "forward", torch.compile(block.forward, fullgraph=True), undo)
        return {}


class RegionalCompile(Optimization):
    """`compile_repeated_blocks(fullgraph=True)`."""

    name: ClassVar[str] = "regional_compile"
    summary: ClassVar[str] = "blocks through torch.compile (diffusers compile_repeated_blocks)"
    effect: ClassVar[Effect] = Effect.NUMERIC
    phase: ClassVar[Phase] = Phase.COMPILE

    def hardware_refusal(self, machine: Machine) -> str | None:
        """Why torch.compile cannot run."""
        return Compile().refusal(machine)

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Compile on first use."""
        for block in blocks_of(pipe.transformer):
            keep_attribute(block, "_compiled_call_impl", undo)
        pipe.transformer.compile_repeated_blocks(fullgraph=True)
        return {}


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
