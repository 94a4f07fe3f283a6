"""Cases of images that a test chooses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from kontext_fast.metrics.base import Case


@dataclass(frozen=True)
class FreeItem:
    """An item with whatever a test gives it."""

    id: str = "0" * 16
    instruction: str = "make it blue"
    image: Image.Image | None = None
    kind: str | None = None
    open: bool | None = None
    target: Image.Image | None = None
    mask: Image.Image | None = None
    input_caption: str | None = None
    output_caption: str | None = None


def noise(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    width, height = size
    smooth = np.random.default_rng(seed).uniform(0, 255, (height // 8, width // 8, 3)).astype(np.uint8)
    return Image.fromarray(smooth).resize(size, Image.Resampling.BICUBIC)


def pair(output: Image.Image, reference: Image.Image) -> Case:
    return Case(FreeItem(image=reference), output, reference)


def latent_pair(latents: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> Case:
    picture = noise(0)
    return Case(FreeItem(image=picture), picture, picture, latents, reference)
