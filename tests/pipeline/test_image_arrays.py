"""Arrays and tensors as input images: what is read, and what is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.images import to_rgb

RED = (255, 0, 0)


def red_array(dtype: Any, high: float) -> np.ndarray[Any, Any]:
    array = np.zeros((20, 24, 3), dtype=dtype)
    array[..., 0] = high
    return array


@pytest.mark.parametrize(
    "image",
    [
        red_array(np.uint8, 255),
        red_array(np.uint16, 65535),
        red_array(np.float32, 1.0),
        red_array(np.float64, 1.0)[None],
        torch.from_numpy(red_array(np.float32, 1.0)),
        torch.from_numpy(red_array(np.float32, 1.0)).permute(2, 0, 1),
        torch.from_numpy(red_array(np.float32, 1.0)).permute(2, 0, 1)[None].bfloat16(),
        torch.from_numpy(red_array(np.uint8, 255)).permute(2, 0, 1),
        np.concatenate([red_array(np.uint8, 255), np.full((20, 24, 1), 255, np.uint8)], axis=2),
    ],
)
def test_arrays_and_tensors_are_read(image: Any) -> None:
    converted = to_rgb(image)
    assert (converted.mode, converted.size) == ("RGB", (24, 20))
    assert converted.getpixel((3, 4)) == RED


def test_gray_arrays_are_read() -> None:
    assert to_rgb(np.full((16, 20), 0.5)).getpixel((0, 0)) == (128, 128, 128)
    assert to_rgb(torch.full((1, 16, 20), 0.5)).size == (20, 16)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((2, 16, 16, 3), np.uint8), "one input image, not a batch"),
        (torch.full((3, 16, 16), 255.0), "must lie in 0..1"),
        (torch.full((3, 16, 16), -1.0), "must lie in 0..1"),
        (torch.full((3, 16, 16), torch.nan), "not finite"),
        (torch.zeros(16, 32, 32), "latents"),
        (torch.zeros(1, 16, 32, 32), "latents"),
        (np.zeros((16, 16, 3), np.int64), "int64"),
        (np.zeros((16,)), "shape"),
        (np.zeros((0, 16, 3)), "no pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arrays_of_anything_but_one_image_are_refused(image: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        to_rgb(image)
    assert "\n" not in str(caught.value)
