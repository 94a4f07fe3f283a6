"""`latent_error`: how far the latents of two outputs are apart, relative to the reference's, before any decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from kontext_fast.metrics.base import LATENTS, PICTURE_CONTROLS, Case, Control, Metric, Need, Role


class LatentError(Metric):
    name: ClassVar[str] = "latent_error"
    title: ClassVar[str] = "relative latent error"
    role: ClassVar[Role] = Role.FIDELITY
    needs: ClassVar[tuple[Need, ...]] = (LATENTS,)
    must_detect: ClassVar[frozenset[Control]] = frozenset(Control) - PICTURE_CONTROLS

    def scores(self, cases: Sequence[Case]) -> list[float | bool | None]:
        return [_relative(case) for case in cases]


def _relative(case: Case) -> float | None:
    if case.latents is None or case.reference_latents is None or case.latents.shape != case.reference_latents.shape:
        return None
    latents, reference = (array.astype(np.float64) for array in (case.latents, case.reference_latents))
    norm = float(np.linalg.norm(reference))
    error = float(np.linalg.norm(latents - reference))
    return error / norm if norm > 0 and np.isfinite(error) else None
