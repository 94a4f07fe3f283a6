"""`psnr`: peak signal-to-noise ratio in dB between two outputs for the same item and seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from kontext_fast.metrics.base import REFERENCE, Case, Control, Metric, Need, Role
from kontext_fast.metrics.image_batches import pairwise

if TYPE_CHECKING:
    import torch

IDENTICAL_DB = 200.0
"""The score of identical images, whose ratio is infinite; no two 8-bit images that differ come near it."""


class Psnr(Metric):
    name: ClassVar[str] = "psnr"
    title: ClassVar[str] = "PSNR (dB)"
    role: ClassVar[Role] = Role.FIDELITY
    needs: ClassVar[tuple[Need, ...]] = (REFERENCE,)
    must_detect: ClassVar[frozenset[Control]] = frozenset(Control)

    def scores(self, cases: Sequence[Case]) -> list[float | bool | None]:
        from torchmetrics.functional.image import peak_signal_noise_ratio

        def ratio(outputs: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
            decibels: torch.Tensor = peak_signal_noise_ratio(
                outputs, references, data_range=1.0, reduction="none", dim=(1, 2, 3)
            )
            return decibels

        return [min(float(value), IDENTICAL_DB) for value in pairwise(cases, ratio)]

    @staticmethod
    def distance(score: float) -> float:
        """Root mean square error, as a fraction of the peak."""
        return 0.0 if score >= IDENTICAL_DB else float(10 ** (-score / 20))
