"""What diffusers' caches need to work on Kontext, whose pipeline does not name its transformer calls.

A cache keeps what it knows of a call under the call's name. Here each pass gets one, so that the positive and the
negative prompt of true CFG are never taken for each other, and nothing of one request is left for the next.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from kontext_fast.bench.peers.block_tracer import BlockWatch, hooked_modules, is_first_pass
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.call_tracking import PipelineCall
from kontext_fast.optimizations.patching import keep_attribute

_PASSES = ("cond", "uncond")


def enable(
    pipe: Any,
    config: Any,
    undo: ExitStack,
    *,
    attentions: bool = False,
    on_first_pass: Callable[[int], None] = lambda total: None,
) -> None:
    """Enable the cache `config` on the transformer of `pipe` and mark what each step was.

    `attentions`: the cache can skip the attention in a block and run the rest of it. `on_first_pass` is called in each
    request, as soon as its number of steps is known. Raises InvalidInput where another cache is enabled.
    """
    transformer = pipe.transformer
    if transformer.is_cache_enabled:
        raise InvalidInput("The transformer has a cache already; call pipe.transformer.disable_cache() first.")
    for module in hooked_modules(transformer):
        keep_attribute(module, "_diffusers_hook", undo)
        keep_attribute(module, "forward", undo)
    keep_attribute(transformer, "_cache_config", undo)
    watch = BlockWatch(transformer, undo, attentions=attentions)
    transformer.enable_cache(config)
    undo.callback(transformer.disable_cache)

    def named(request: PipelineCall, index: int) -> AbstractContextManager[Any]:
        if is_first_pass(request, index):
            # A request that was interrupted has left what it knew.
            transformer._reset_stateful_cache()
            on_first_pass(request.total_steps)
        context: AbstractContextManager[Any] = transformer.cache_context(_PASSES[index])
        return context

    watch.mark_passes(pipe, undo, named)
