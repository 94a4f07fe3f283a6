"""`reference_latents_cache`: keeps the latents of input images, so that the same pixels are encoded once."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from threading import RLock
from typing import Annotated, Any, ClassVar

from pydantic import Field

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.call_tracking import track_calls
from kontext_fast.optimizations.weight_fingerprint import WeightFingerprint


@dataclass(frozen=True, eq=False)
class _Encoded:
    pixels: Any
    latents: Any
    how: tuple[Any, ...]


class ReferenceLatentsCache(Optimization):
    """Keeps the latents of the most recently used input images, found by comparing every pixel after resizing.

    The pipeline takes the mode of the VAE's distribution and not a sample, so the same pixels give the same latents.
    Changing the VAE empties the cache. No preset of several optimizations has it: a benchmark that repeats an image
    would time the cache and nothing else.
    """

    name: ClassVar[str] = "reference_latents_cache"
    summary: ClassVar[str] = "keeps the latents of input images, so that the same pixels are encoded once"
    effect: ClassVar[Effect] = Effect.EXACT
    phase: ClassVar[Phase] = Phase.REQUESTS

    entries: Annotated[int, Field(ge=1)] = 8
    """Calls whose images are kept; the least recently used one goes first. A 1024x1024 image takes 6.8 MB of the
    device's memory."""

    def label(self, *, architecture_only: bool) -> str | None:
        """That repeated images are not encoded."""
        return (
            "reference_latents_cache: images that are repeated are not encoded again, so times hold for repeated "
            "images only"
        )

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Replace `_encode_vae_image` of `pipe`. The facts `hits` and `misses` count its calls.

        Raises InvalidInput for a pipeline that takes no input image.
        """
        if not hasattr(pipe, "_encode_vae_image"):
            raise InvalidInput(f"{self.name} needs a pipeline with an input image; leave it out for text-to-image.")
        facts: Facts = {"hits": 0, "misses": 0}
        kept: list[_Encoded] = []
        watch, lock = WeightFingerprint(), RLock()

        def encode(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            # Calls of other threads wait: what they encode next may be this image.
            with lock:
                return self._encode(kept, watch, facts, original, *args, **kwargs)

        track_calls(pipe, undo).replace_method(pipe, "_encode_vae_image", encode, undo)
        undo.callback(kept.clear)
        return facts

    def _encode(
        self, kept: list[_Encoded], watch: WeightFingerprint, facts: Facts, original: Any, image: Any, generator: Any
    ) -> Any:
        vae = original.__self__.vae
        if watch.changed([vae]):
            kept.clear()
        # Several generators have the images encoded one by one, which rounds differently.
        how = (isinstance(generator, list), vae.use_tiling, vae.use_slicing)
        encoded = next((entry for entry in kept if entry.how == how and _same(entry.pixels, image)), None)
        facts["misses" if encoded is None else "hits"] += 1
        if encoded is None:
            encoded = _Encoded(image.clone(), original(image, generator).clone(), how)
        else:
            kept.remove(encoded)
        kept.append(encoded)
        del kept[: -self.entries]
        # A copy, since whoever gets it may write to it.
        return encoded.latents.clone()


def _same(kept: Any, image: Any) -> bool:
    import torch

    alike = (kept.shape, kept.dtype, kept.device) == (image.shape, image.dtype, image.device)
    return alike and torch.equal(kept, image)
