"""One edit on several GPUs: the first one runs the text encoders while the second one encodes the image.

Each gives what it encoded to all others before the first step. Which tensors that will be is known from an earlier call
with as many prompts and pixels, which every process encoded itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from kontext_fast.engine.ranks import require_alike

if TYPE_CHECKING:
    from kontext_fast.engine.ranks import Ranks
    from kontext_fast.optimizations.call_tracking import CallTracker, PipelineCall

_OF_TEXT, _OF_IMAGE = range(2)
"""Ranks."""

_PENDING, _SAMPLED = object(), object()
"""In the memory of a call: what is encoded and not given to the others yet, and some numbers of the images."""

Encode = Callable[[], tuple[Tensor, ...]]


class SharedEncoding:
    """The encoders of one acceleration, in all of its processes."""

    def __init__(self, ranks: Ranks, calls: CallTracker) -> None:
        self.ranks: Ranks | None = ranks
        """None: every process encodes all."""
        self._calls = calls
        self._layouts: dict[Hashable, list[tuple[torch.Size, torch.dtype]]] = {}
        """Of the tensors that an encoder gives, by sizes of its inputs."""

    def install(self, pipe: Any, undo: ExitStack) -> None:
        """Share the encoders of calls of `pipe`, until `undo` is closed.

        Caches of prompts and images, which come after this, replace the same methods, and then nothing is shared.
        """
        from diffusers import FluxKontextPipeline

        # Other pipelines draw random numbers when they encode an image, which all processes have to draw.
        if isinstance(pipe, FluxKontextPipeline):
            self._calls.replace_method(pipe, "encode_prompt", self._text, undo)
            self._calls.replace_method(pipe, "_encode_vae_image", self._image, undo)

    def _text(self, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call, bound = self._calls.current, inspect.signature(original).bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = bound.arguments
        encoded_before = arguments["prompt_embeds"] is not None
        if self.ranks is None or call is None or call.arguments.get("image") is None or encoded_before:
            return original(*args, **kwargs)
        call.memory.setdefault(_PENDING, [])
        prompt = arguments["prompt"]
        sizes = 1 if isinstance(prompt, str) else len(prompt), arguments["num_images_per_prompt"]
        key = *sizes, arguments["max_sequence_length"]
        return self._encoded(call, _OF_TEXT, key, partial(original, *args, **kwargs), (prompt, arguments["prompt_2"]))

    def _image(self, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self._calls.current
        if call is None or _PENDING not in call.memory:
            return original(*args, **kwargs)
        image = inspect.signature(original).bind(*args, **kwargs).arguments["image"]
        key = image.shape, image.dtype
        (latents,) = self._encoded(call, _OF_IMAGE, key, lambda: (original(*args, **kwargs),), ())
        self.exchange(call, image)
        return latents

    def _encoded(
        self, call: PipelineCall, rank: int, key: Hashable, encode: Encode, said: tuple[Any, ...]
    ) -> tuple[Tensor, ...]:
        """What `encode` gives, which in other processes than `rank` holds nothing before `exchange`."""
        assert self.ranks is not None
        if not self.ranks.everywhere(key in self._layouts):
            encoded = encode()
            self._layouts[key] = [(tensor.shape, tensor.dtype) for tensor in encoded]
            return encoded
        if self.ranks.rank == rank:
            encoded = tuple(tensor.contiguous() for tensor in encode())
        else:
            device = self.ranks.device
            encoded = tuple(torch.empty(shape, dtype=dtype, device=device) for shape, dtype in self._layouts[key])
        call.memory[_PENDING].append((rank, encoded, said))
        return encoded

    def exchange(self, call: PipelineCall, image: Tensor | None = None) -> None:
        """Give what was encoded in `call` to all processes, before anything reads it; `image` is what was encoded.

        Raises InvalidInput where they have different prompts or sizes.
        """
        if self.ranks is None or not (pending := call.memory.get(_PENDING)):
            return
        sizes = [(rank, said, [tensor.shape for tensor in encoded]) for rank, encoded, said in pending]
        self.ranks.agree(f"encodings of {sizes}")
        with self.ranks.step():
            if image is not None:
                call.memory[_SAMPLED] = self.ranks.sampled([image])
            for rank, encoded, _ in pending:
                for tensor in encoded:
                    # As bytes, since not every backend takes every dtype.
                    dist.broadcast(tensor.view(torch.uint8), src=rank)
        pending.clear()

    def require_alike(self, call: PipelineCall) -> None:
        """Raise InvalidInput where the processes had different images, of which one was encoded."""
        if (sampled := call.memory.get(_SAMPLED)) is not None:
            require_alike(sampled)
