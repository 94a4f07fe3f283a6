"""One call of a pipeline that ends before the images are decoded, and how far its latents are from others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL.Image import Image
from torch import Generator, Tensor

from kontext_fast.pipeline.edit import text_length

GUIDANCE = 2.5


def latents_of(
    pipe: Any,
    images: Sequence[Image],
    instructions: Sequence[str],
    *,
    steps: int,
    generator: Sequence[Generator] | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """[n, tokens, channels] of edits of square `images` of one size, in one batch.

    The noise is drawn from `generator`, one per image and in the pipeline's dtype, or is `noise`.
    """
    side, _ = images[0].size
    latents: Tensor = pipe(
        image=list(images),
        prompt=list(instructions),
        height=side,
        width=side,
        max_area=side * side,
        _auto_resize=False,
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        generator=None if generator is None else list(generator),
        latents=noise,
        max_sequence_length=text_length(pipe),
        output_type="latent",
    ).images
    return latents


def relative_error(latents: Tensor, reference: Tensor) -> float:
    """Of all samples together: the norm of the difference over that of the reference, both of one shape."""
    return float((latents.double() - reference.double()).norm() / reference.double().norm())
