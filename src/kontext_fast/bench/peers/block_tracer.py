"""What a step of a peer really ran, seen from outside: which blocks of the transformer, and which attentions in them.

A cache decides deep in its own code, so nothing it says about itself is asked. Every block's `forward` is counted,
below whatever the peer wraps around it; what was not called did not run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import MethodType
from typing import Any

from kontext_fast.optimizations.call_tracking import PipelineCall, track_calls
from kontext_fast.optimizations.patching import keep_attribute
from kontext_fast.records.schema import StepKind

Around = Callable[[PipelineCall, int], AbstractContextManager[Any]]
"""Entered around each pass of a request, with the index of the pass in its step (0, and 1 under true CFG)."""


def blocks_of(transformer: Any) -> list[Any]:
    """All blocks, in the order in which they run."""
    return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]


class BlockWatch:
    """Counts the blocks of one transformer. Made before a peer wraps them, so that its wrappers lie outside."""

    def __init__(self, transformer: Any, undo: ExitStack, *, attentions: bool = False) -> None:
        """`attentions`: also watch the attention in each block, where a peer can skip that alone.

        Blocks must then not be compiled, since nothing inside of compiled code can be watched.
        """
        self._transformer = transformer
        self._ran: set[int] = set()
        self._blocks = blocks_of(transformer)
        self._attentions = [block.attn for block in self._blocks] if attentions else []
        for module in (*self._blocks, *self._attentions):
            keep_attribute(module, "forward", undo)
            module.forward = self._counted(module)

    def kind(self) -> StepKind:
        """Of the pass that just ended. As in our own block cache, a pass that left out blocks counts as skipped."""
        if not self._all_ran(self._blocks):
            return "skipped"
        return "refresh" if self._all_ran(self._attentions) else "reuse"

    def mark_passes(self, pipe: Any, undo: ExitStack, around: Around = lambda request, index: nullcontext()) -> None:
        """Mark every pass of the requests of `pipe` with its kind; called after the peer was applied."""
        requests = track_calls(pipe, undo)
        transformer = self._transformer
        keep_attribute(transformer, "forward", undo)
        inner = transformer.forward

        @functools.wraps(inner)
        def forward(_self: Any, *args: Any, **kwargs: Any) -> Any:
            request = requests.current
            if request is None:
                return inner(*args, **kwargs)
            self._ran.clear()
            with around(request, request.begin_pass()):
                result = inner(*args, **kwargs)
            request.mark(self.kind())
            return result

        transformer.forward = MethodType(forward, transformer)

    def _counted(self, module: Any) -> Callable[..., Any]:
        forward, ran, key = module.forward, self._ran, id(module)

        @functools.wraps(forward)
        def counted(*args: Any, **kwargs: Any) -> Any:
            ran.add(key)
            return forward(*args, **kwargs)

        return counted

    def _all_ran(self, modules: list[Any]) -> bool:
        return all(id(module) in self._ran for module in modules)


def is_first_pass(request: PipelineCall, index: int) -> bool:
    """Whether this is the first pass of the request, when its number of steps is first known."""
    return request.step == 0 and index == 0


def hooked_modules(transformer: Any) -> Iterator[Any]:
    """What diffusers' caches hook: the transformer, its blocks, their attentions and the output projection."""
    yield transformer
    yield transformer.proj_out
    for block in blocks_of(transformer):
        yield block
        yield block.attn
