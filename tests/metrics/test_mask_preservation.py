from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kontext_fast.metrics.base import Case, Setting
from kontext_fast.metrics.mask_preservation import MaskPreservation
from kontext_fast.metrics.psnr import IDENTICAL_DB
from tests.metrics.cases import FreeItem, noise


def _half_mask(white: slice) -> Image.Image:
    mask = np.zeros((48, 64), np.uint8)
    mask[:, white] = 255
    return Image.fromarray(mask)


def test_only_pixels_outside_the_mask_count() -> None:
    source = noise(1)
    changed = np.asarray(source).copy()
    changed[:, :32] = 0
    output = Image.fromarray(changed)
    inside = Case(FreeItem(image=source, mask=_half_mask(slice(0, 32))), output)
    outside = Case(FreeItem(image=source, mask=_half_mask(slice(32, 64))), output)
    everywhere = Case(FreeItem(image=source, mask=_half_mask(slice(0, 64))), output)
    scores = MaskPreservation(Setting()).scores([inside, outside, everywhere])
    error = np.mean(np.asarray(source, float)[:, :32] ** 2)
    assert scores == [IDENTICAL_DB, pytest.approx(10 * np.log10(255**2 / error)), None]


def test_mask_is_needed() -> None:
    (need,) = MaskPreservation.needs
    assert need.of_item
    assert not need.met(Case(FreeItem(image=noise(1)), noise(1)))
    assert need.met(Case(FreeItem(image=noise(1), mask=_half_mask(slice(0, 32))), noise(1)))
