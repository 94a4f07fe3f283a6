"""PSNR and SSIM against scikit-image on its own photographs; the latent error against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from kontext_fast.metrics.base import Setting
from kontext_fast.metrics.latent_error import LatentError
from kontext_fast.metrics.psnr import IDENTICAL_DB, Psnr
from kontext_fast.metrics.ssim import Ssim, similarity
from tests.metrics.cases import latent_pair, noise, pair

SETTING = Setting()


def photographs() -> list[Image.Image]:
    return [Image.fromarray(picture[:160, :200]) for picture in (data.astronaut(), data.coffee(), data.chelsea())]


def damaged(picture: Image.Image) -> list[Image.Image]:
    shifted = Image.fromarray(np.roll(np.asarray(picture), 3, axis=1))
    return [picture.filter(ImageFilter.GaussianBlur(2)), shifted, picture.point(lambda value: value // 2)]


PAIRS = [(bad, good) for good in photographs() for bad in damaged(good)]


def test_psnr_matches_scikit_image() -> None:
    expected = [peak_signal_noise_ratio(np.asarray(good), np.asarray(bad), data_range=255) for bad, good in PAIRS]
    assert Psnr(SETTING).scores([pair(bad, good) for bad, good in PAIRS]) == pytest.approx(expected, abs=1e-3)


def test_ssim_matches_scikit_image() -> None:
    expected = [
        structural_similarity(
            np.asarray(good),
            np.asarray(bad),
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
        for bad, good in PAIRS
    ]
    assert Ssim(SETTING).scores([pair(bad, good) for bad, good in PAIRS]) == pytest.approx(expected, abs=2e-4)


def test_ssim_matches_torchmetrics_without_the_border() -> None:
    outputs, references = (torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    _, whole = structural_similarity_index_measure(
        outputs.double(), references.double(), sigma=1.5, data_range=1.0, reduction="none", return_full_image=True
    )
    torch.testing.assert_close(
        similarity(outputs, references), whole[..., 5:-5, 5:-5].mean((1, 2, 3)), rtol=0, atol=1e-12
    )


def test_flat_image_equals_itself() -> None:
    flat = Image.new("RGB", (64, 64), (201, 87, 33))
    (score,) = Ssim(SETTING).scores([pair(flat, flat)])
    assert score is not None
    assert Ssim(SETTING).distance(score) == 0


def test_only_equal_images_have_no_distance() -> None:
    same, other = pair(noise(1), noise(1)), pair(noise(1), noise(2))
    for metric in (Psnr(SETTING), Ssim(SETTING)):
        equal, unequal = metric.scores([same, other])
        assert equal is not None
        assert unequal is not None
        assert metric.distance(equal) == pytest.approx(0, abs=1e-6)
        assert metric.distance(unequal) > 0.05
    assert Psnr(SETTING).scores([same]) == [IDENTICAL_DB]


def test_psnr_distance_is_the_root_mean_square_error() -> None:
    bad, good = PAIRS[0]
    error = np.sqrt(np.mean((np.asarray(bad, float) - np.asarray(good, float)) ** 2)) / 255
    (score,) = Psnr(SETTING).scores([pair(bad, good)])
    assert score is not None
    assert Psnr.distance(score) == pytest.approx(error, rel=1e-4)


def test_images_of_several_sizes_keep_their_order() -> None:
    sizes = [(64, 48), (48, 64), (64, 48), (32, 32)]
    cases = [pair(noise(index, size), noise(index + 10, size)) for index, size in enumerate(sizes)]
    together = Psnr(SETTING).scores(cases)
    assert together == pytest.approx([Psnr(SETTING).scores([case])[0] for case in cases])


def test_latent_error_is_relative_to_the_reference() -> None:
    reference = np.random.default_rng(0).normal(size=(16, 8, 8)).astype(np.float32)
    metric = LatentError(SETTING)
    assert metric.scores([latent_pair(reference, reference)]) == [0.0]
    assert metric.scores([latent_pair(1.01 * reference, reference)]) == pytest.approx([0.01], rel=1e-4)
    assert metric.scores([latent_pair(3 * reference, 100 * reference)]) == pytest.approx([0.97], rel=1e-4)


def test_latents_of_other_shapes_give_no_score() -> None:
    reference = np.ones((16, 8, 8), np.float32)
    broken = np.full_like(reference, np.nan)
    zero = np.zeros_like(reference)
    metric = LatentError(SETTING)
    assert metric.scores([latent_pair(broken, reference), latent_pair(reference, zero)]) == [None, None]
    assert metric.scores([latent_pair(reference[:, :4], reference)]) == [None]


def test_distances_are_proportional_to_the_error() -> None:
    good = np.asarray(photographs()[0], float)
    error = np.random.default_rng(3).normal(0, 4, good.shape)
    once, twice = (
        pair(Image.fromarray(np.clip(good + factor * error, 0, 255).round().astype(np.uint8)), photographs()[0])
        for factor in (1, 2)
    )
    for metric in (Psnr(SETTING), Ssim(SETTING)):
        small, large = (metric.distance(float(score)) for score in metric.scores([once, twice]) if score is not None)
        assert 1.6 < large / small < 2.1, metric.name
