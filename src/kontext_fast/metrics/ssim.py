"""`ssim`: structural similarity of two outputs for the same item and seed, by Wang et al. (Gaussian window, 1.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from kontext_fast.metrics.base import Case, Control, Metric, Need, Role
from kontext_fast.metrics.pixels import pairwise

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
    needs: ClassVar[tuple[Need, ...]] = (Need.REFERENCE,)
    sees: ClassVar[frozenset[Control]] = frozenset(Control)

    def scores(self, cases: Sequence[Case]) -> list[float | bool | None]:
        from torchmetrics.functional.image import structural_similarity_index_measure

        def similarity(outputs: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
            # In float32 the variances of flat areas cancel so badly that identical pictures differ by 3e-5.
            _, whole = structural_similarity_index_measure(
                outputs.double(),
                references.double(),
                sigma=SIGMA,
                data_range=1.0,
                reduction="none",
                return_full_image=True,
            )
            # Like Wang's own: only windows that lie inside the picture count.
            inside: torch.Tensor = whole[..., BORDER:-BORDER, BORDER:-BORDER]
            return inside.mean((1, 2, 3))

        return [float(value) for value in pairwise(cases, similarity)]

    @staticmethod
    def distance(score: float) -> float:
        """The root, since 1 - SSIM grows with the square of an error; what float64 cannot resolve is no distance."""
        return 0.0 if 1 - score < RESOLUTION else float((1 - score) ** 0.5)
