"""What happens to finished pictures, which latents cannot show and SSIM hardly sees, is held against seed noise too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from kontext_fast.datasets.shapes import held_out
from kontext_fast.metrics.base import Case, Metric, Setting
from kontext_fast.metrics.psnr import Psnr
from kontext_fast.metrics.ssim import Ssim
from kontext_fast.verify.comparisons import FidelityDistances, Outcome, SeedNoiseComparison, compare_with_seed_noise
from kontext_fast.verify.margins import read_margins

ITEMS = 60
SPREADS = np.interp(np.linspace(0, 1, ITEMS), [0.05, 0.1, 0.25, 0.5, 0.75, 0.9], [0.34, 0.41, 0.88, 2.5, 19.5, 33.9])
"""Root mean square between two seeds of baseline in levels of 255, as measured on tiny (100 items, 10 steps)."""


def watermark(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image, np.float32).copy()
    rows, columns = np.mgrid[: image.height, : image.width]
    pixels[(rows + columns) // 8 % 8 == 0] += 6
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def rounded(image: Image.Image) -> Image.Image:
    """A twentieth of the pixels one level off, as rounding leaves them."""
    rng = np.random.default_rng(1)
    pixels = np.asarray(image, np.int16)
    return Image.fromarray(np.clip(pixels + (rng.random(pixels.shape) < 0.05), 0, 255).astype(np.uint8))


def against_seed_noise(metric: type[Metric], change: Callable[[Image.Image], Image.Image]) -> SeedNoiseComparison:
    items = held_out(ITEMS)
    cases = [Case(item, change(item.target), item.target) for item in items]
    distances = [metric.distance(float(score or 0)) for score in metric(Setting()).scores(cases)]
    rng = np.random.default_rng(0)
    seeds = []
    for item, spread in zip(items, SPREADS, strict=True):
        pixels = np.asarray(item.target, np.float32)
        other = Image.fromarray(np.clip(pixels + rng.normal(0, spread, pixels.shape), 0, 255).round().astype(np.uint8))
        seeds.append(Case(item, other, item.target))
    noise = [metric.distance(float(score or 0)) for score in metric(Setting()).scores(seeds)]
    names = [item.id for item in items]
    comparison = compare_with_seed_noise(
        FidelityDistances(
            metric.name,
            to_baseline={name: [value] for name, value in zip(names, distances, strict=True)},
            floors={},
            between_seeds={name: [value] for name, value in zip(names, noise, strict=True)},
        ),
        read_margins(),
    )
    assert comparison is not None
    return comparison


@pytest.mark.parametrize(
    "change",
    [
        lambda image: ImageEnhance.Brightness(image).enhance(1.01),
        lambda image: ImageEnhance.Contrast(image).enhance(0.98),
        watermark,
    ],
    ids=["brightness", "contrast", "watermark"],
)
def test_small_change_of_every_picture_fails_in_psnr(change: Callable[[Image.Image], Image.Image]) -> None:
    assert against_seed_noise(Psnr, change).outcome is Outcome.FAILED


def test_brightness_passes_in_ssim_which_is_why_psnr_is_needed() -> None:
    assert against_seed_noise(Ssim, lambda image: ImageEnhance.Brightness(image).enhance(1.01)).p90 < 1


def test_rounding_passes_in_psnr() -> None:
    assert against_seed_noise(Psnr, rounded).outcome is Outcome.PASSED
