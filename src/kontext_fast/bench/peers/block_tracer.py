"""Which blocks of the transformer a peer really ran in a step.

A cache decides deep in its own code, so its own statistics are not used. The `forward` of every block is counted below
whatever wrappers the peer adds; a block that was not called did not run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import MethodType
from typing import Any

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.call_tracking import PipelineCall, track_calls
from kontext_fast.optimizations.patching import keep_attribute, set_attribute
from kontext_fast.records.schema import StepKind

_PASSES = ("cond", "uncond")

Around = Callable[[PipelineCall, int], AbstractContextManager[Any]]
"""Entered around each pass of a request, with the index of the pass in its step (0, and 1 under true CFG)."""


def blocks_of(transformer: Any) -> list[Any]:
    """All blocks, in the order in which they run."""
    return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]


class BlockTracer:
    """Counts the blocks of one transformer. Create it before a peer adds its wrappers, which must be outside."""

    def __init__(self, transformer: Any, undo: ExitStack) -> None:
        self._transformer = transformer
        self._ran: set[int] = set()
        self._blocks = blocks_of(transformer)
        for block in self._blocks:
            set_attribute(block, "forward", self._counted(block), undo)

    def kind(self) -> StepKind:
        """The kind of the pass that just ended.

        As in our own block cache, a pass that left out blocks is skipped; one that left out parts of blocks is full.
        """
        return "full" if all(id(block) in self._ran for block in self._blocks) else "skipped"

    def mark_passes(self, pipe: Any, undo: ExitStack, around: Around = lambda call, index: nullcontext()) -> None:
        """Mark every pass of the requests of `pipe` with its kind; call it after the peer was applied."""
        calls = track_calls(pipe, undo)
        transformer = self._transformer
        inner = transformer.forward

        @functools.wraps(inner)
        def forward(_self: Any, *args: Any, **kwargs: Any) -> Any:
            call = calls.current
            if call is None:
                return inner(*args, **kwargs)
            self._ran.clear()
            with around(call, call.begin_pass()):
                result = inner(*args, **kwargs)
            call.mark(self.kind())
            return result

        set_attribute(transformer, "forward", MethodType(forward, transformer), undo)

    def _counted(self, block: Any) -> Callable[..., Any]:
        forward, ran, key = block.forward, self._ran, id(block)

        @functools.wraps(forward)
        def counted(*args: Any, **kwargs: Any) -> Any:
            ran.add(key)
            return forward(*args, **kwargs)

        return counted


def is_first_pass(call: PipelineCall, index: int) -> bool:
    """Whether this is the first pass of the request, in which its number of steps becomes known."""
    return call.step == 0 and index == 0


def enable_diffusers_cache(
    pipe: Any,
    config: Any,
    undo: ExitStack,
    *,
    on_first_pass: Callable[[int], None] = lambda total: None,
) -> None:
    """Enable diffusers' cache `config` on the transformer of `pipe`, and mark each pass with its kind.

    A cache stores its state under the name of a call, and FluxKontextPipeline does not name its transformer calls. Each
    pass gets a name, so that the positive and the negative prompt of true CFG do not share state, and the state is
    reset at the start of each request.

    `on_first_pass` is called in each request with its number of steps. Raises InvalidInput if another cache is enabled.
    """
    transformer = pipe.transformer
    if transformer.is_cache_enabled:
        raise InvalidInput("The transformer has a cache already; call pipe.transformer.disable_cache() first.")
    for module in _hooked_modules(transformer):
        keep_attribute(module, "_diffusers_hook", undo)
        keep_attribute(module, "forward", undo)
    keep_attribute(transformer, "_cache_config", undo)
    tracer = BlockTracer(transformer, undo)
    transformer.enable_cache(config)
    undo.callback(transformer.disable_cache)

    def named(call: PipelineCall, index: int) -> AbstractContextManager[Any]:
        if is_first_pass(call, index):
            # An interrupted request does not clear its state.
            transformer._reset_stateful_cache()
            on_first_pass(call.total_steps)
        context: AbstractContextManager[Any] = transformer.cache_context(_PASSES[index])
        return context

    tracer.mark_passes(pipe, undo, named)


def _hooked_modules(transformer: Any) -> Iterator[Any]:
    """The modules that diffusers' caches hook: the transformer, its blocks, their attentions, the output projection."""
    yield transformer
    yield transformer.proj_out
    for block in blocks_of(transformer):
        yield block
        yield block.attn
