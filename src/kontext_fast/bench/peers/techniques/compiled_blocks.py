"""`compiled_blocks`: what `compile_repeated_blocks` compiles, but below the hooks of a cache instead of above them.

diffusers' caches live in hooks around each block, and their decisions break a graph that contains them: compiling the
repeated blocks with MagCache in place compiles nothing, without a word. So a cache gets blocks whose own forward is
compiled. That is more than their documentation offers, and it is what a rival should be measured with.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from kontext_fast.bench.peers.block_tracer import blocks_of
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.patching import keep_attribute
from kontext_fast.optimizations.techniques.compile import Compile

if TYPE_CHECKING:
    from kontext_fast.optimizations.machine import Machine


class CompiledBlocks(Optimization):
    """`forward` of each block through torch.compile, applied before any cache."""

    name: ClassVar[str] = "compiled_blocks"
    summary: ClassVar[str] = "blocks through torch.compile, below a cache's hooks"
    effect: ClassVar[Effect] = Effect.NUMERIC
    phase: ClassVar[Phase] = Phase.LAYOUT

    def hardware_refusal(self, machine: Machine) -> str | None:
        """It belongs to the part of a recipe that is for GPUs."""
        if machine.device != "cuda":
            return f"{self.name} is the GPU's part of a recipe; run it on one"
        return Compile().refusal(machine)

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Compile on first use."""
        import torch

        for block in blocks_of(pipe.transformer):
            keep_attribute(block, "forward", undo)
            block.forward = torch.compile(block.forward, fullgraph=True)
        return {}
