"""`prompt_cache`: keeps the embeddings of prompts, so that a repeated prompt is not encoded again."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from contextlib import ExitStack
from threading import RLock
from typing import Annotated, Any, ClassVar

from pydantic import Field

from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.call_tracking import track_calls
from kontext_fast.optimizations.weight_fingerprint import WeightFingerprint

_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


class PromptCache(Optimization):
    """Keeps the embeddings of the most recently used prompts, bit-identical to those of another run.

    Prompts of one call are kept together, since encoders round differently in another batch. Changing the encoders
    empties the cache. No preset of several optimizations has it: a benchmark that repeats a prompt would time the
    cache and nothing else.
    """

    name: ClassVar[str] = "prompt_cache"
    summary: ClassVar[str] = "keeps the embeddings of prompts, so that the same words are encoded once"
    effect: ClassVar[Effect] = Effect.EXACT
    phase: ClassVar[Phase] = Phase.REQUESTS

    entries: Annotated[int, Field(ge=1)] = 32
    """Calls whose prompts are kept; the least recently used one goes first. At full size each prompt is 4.2 MB."""

    def label(self, *, architecture_only: bool) -> str | None:
        """That repeated prompts are not encoded."""
        return "prompt_cache: prompts that are repeated are not encoded again, so times hold for repeated prompts only"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Replace `encode_prompt` of `pipe`. The facts `hits` and `misses` count its calls."""
        facts: Facts = {"hits": 0, "misses": 0}
        kept: OrderedDict[Any, Any] = OrderedDict()
        watch, lock = WeightFingerprint(), RLock()

        def encode(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = inspect.signature(original).bind(*args, **kwargs)
            call.apply_defaults()
            if call.arguments.get("prompt_embeds") is not None:
                return original(*args, **kwargs)
            owner = original.__self__
            parts = [getattr(owner, part) for part in _PARTS]
            key = (*map(id, parts), owner._execution_device, *(_frozen(value) for value in call.arguments.values()))
            # Calls of other threads wait: what they encode next may be this prompt.
            with lock:
                if watch.changed([owner.text_encoder, owner.text_encoder_2]):
                    kept.clear()
                facts["hits" if key in kept else "misses"] += 1
                if key not in kept:
                    # With the parts, so that they stay alive and no other one gets the identity of one of them.
                    kept[key] = parts, tuple(map(_copy, original(*args, **kwargs)))
                    while len(kept) > self.entries:
                        kept.popitem(last=False)
                kept.move_to_end(key)
                # Copies, since the caller may write to them.
                return tuple(map(_copy, kept[key][1]))

        track_calls(pipe, undo).replace_method(pipe, "encode_prompt", encode, undo)
        undo.callback(kept.clear)
        return facts


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _copy(tensor: Any) -> Any:
    return tensor.clone()
