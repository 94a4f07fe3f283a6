"""`regional_compile`: diffusers' `compile_repeated_blocks`, which compiles each class of block once."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from kontext_fast.bench.peers.block_tracer import blocks_of
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.patching import keep_attribute
from kontext_fast.optimizations.techniques.compile import Compile

if TYPE_CHECKING:
    from kontext_fast.pipeline.device import Machine


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
