"""`compiled_blocks`: compiles the same blocks as `compile_repeated_blocks`, but below the hooks of a cache.

diffusers' caches are hooks around each block, whose decisions break a graph that contains them: compiling the repeated
blocks with MagCache enabled compiles nothing, without a warning. So the forward of each block is compiled below the
hooks. Their documentation does not offer this, but without it the comparison would be unfair to the caches.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from kontext_fast.bench.peers.block_tracer import blocks_of
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.patching import set_attribute
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
