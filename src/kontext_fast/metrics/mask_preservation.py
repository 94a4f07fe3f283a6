"""`mask_preservation`: PSNR in dB between output and input outside the mask of what the edit may change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from kontext_fast.metrics.base import Case, Control, Metric, Need, Role
from kontext_fast.metrics.psnr import IDENTICAL_DB


class MaskPreservation(Metric):
    name: ClassVar[str] = "mask_preservation"
    title: ClassVar[str] = "PSNR outside the mask (dB)"
    role: ClassVar[Role] = Role.QUALITY
    needs: ClassVar[tuple[Need, ...]] = (
        Need("a mask of what may change", lambda case: case.item.mask is not None, of_item=True),
    )
    must_detect: ClassVar[frozenset[Control]] = frozenset({Control.BLUR, Control.JPEG})

    def scores(self, cases: Sequence[Case]) -> list[float | bool | None]:
        return [_outside(case) for case in cases]


def _outside(case: Case) -> float | None:
    """None where the mask covers the whole image."""
    mask, output = case.item.mask, case.output.convert("RGB")
    if mask is None:
        return None
    kept = np.asarray(mask.resize(output.size)) < 128
    if not kept.any():
        return None
    source = np.asarray(case.item.image.resize(output.size), np.float64)[kept]
    error = float(np.mean((np.asarray(output, np.float64)[kept] - source) ** 2))
    return IDENTICAL_DB if error == 0 else float(10 * np.log10(255**2 / error))
