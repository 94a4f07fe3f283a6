"""Pairs of images as batches of torch tensors, grouped by size, for the metrics that compare pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kontext_fast.metrics.base import Case

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_MOST_PIXELS = 4 * 2**20
"""Pixels of a batch."""


def pairwise(cases: Sequence[Case], compare: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> list[Any]:
    """`compare(outputs, references)` on batches (n, 3, height, width), float32 in 0..1, one number per case."""
    import torch

    by_size: dict[tuple[int, int], list[int]] = {}
    for index, case in enumerate(cases):
        by_size.setdefault(case.output.size, []).append(index)
    values: list[Any] = [None] * len(cases)
    for (width, height), indices in by_size.items():
        step = max(1, _MOST_PIXELS // (width * height))
        for start in range(0, len(indices), step):
            chunk = indices[start : start + step]
            outputs = torch.stack([tensor(cases[index].output) for index in chunk])
            references = torch.stack([tensor(cases[index].reference) for index in chunk])
            for index, value in zip(chunk, compare(outputs, references).reshape(-1).tolist(), strict=True):
                values[index] = value
    return values


def tensor(image: Image | None) -> torch.Tensor:
    """(3, height, width), float32 in 0..1."""
    import torch

    if image is None:
        raise ValueError("there is no image to compare with")
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
