"""`ssim`: structural similarity of two outputs for the same item and seed, by Wang et al. (Gaussian window, 1.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from kontext_fast.metrics.base import REFERENCE, Case, Control, Metric, Need, Role
from kontext_fast.metrics.image_batches import pairwise

if TYPE_CHECKING:
    import torch

SIGMA = 1.5
BORDER = 5
"""Half the width of the window, in pixels."""
RESOLUTION = 1e-12


class Ssim(Metric):
    name: ClassVar[str] = "ssim"
    title: ClassVar[str] = "SSIM"
    role: ClassVar[Role] = Role.FIDELITY
    needs: ClassVar[tuple[Need, ...]] = (REFERENCE,)
    must_detect: ClassVar[frozenset[Control]] = frozenset(Control)

    def scores(self, cases: Sequence[Case]) -> list[float | bool | None]:
        return [float(value) for value in pairwise(cases, similarity)]

    @staticmethod
    def distance(score: float) -> float:
        """The root, since 1 - SSIM grows with the square of an error; what float64 cannot resolve is no distance."""
        return 0.0 if 1 - score < RESOLUTION else float((1 - score) ** 0.5)


def similarity(outputs: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """[n] mean SSIM of `outputs` and `references`, both [n, channels, height, width] in 0..1.

    As in Wang et al. (2004), only windows inside the image count. In float64: in float32 the variances of
    flat areas cancel so badly that identical images differ by 3e-5.
    """
    import torch

    first, second = outputs.double(), references.double()
    planes = torch.stack((first, second, first * first, second * second, first * second))
    mean, other_mean, square, other_square, product = _blurred(_blurred(planes, -2), -1)
    covariance = product - mean * other_mean
    variances = square - mean**2 + other_square - other_mean**2
    small, large = 0.01**2, 0.03**2
    likeness = (2 * mean * other_mean + small) * (2 * covariance + large)
    windows: torch.Tensor = likeness / ((mean**2 + other_mean**2 + small) * (variances + large))
    return windows.mean((1, 2, 3))


def _blurred(planes: torch.Tensor, dim: int) -> torch.Tensor:
    """The window applied along one dimension, as a sum of shifted planes: a CPU takes a seventh of the time that a
    convolution in float64 takes."""
    import torch

    places = torch.arange(-BORDER, BORDER + 1, dtype=planes.dtype)
    window = torch.softmax(-((places / SIGMA) ** 2) / 2, dim=0).tolist()
    length = planes.shape[dim] - 2 * BORDER
    blurred: torch.Tensor = planes.narrow(dim, 0, length) * window[0]
    for place, weight in enumerate(window[1:], start=1):
        blurred.add_(planes.narrow(dim, place, length), alpha=weight)
    return blurred
