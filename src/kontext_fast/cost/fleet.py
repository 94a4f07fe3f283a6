"""How many whole GPUs serve the busiest hour without long queues."""

from __future__ import annotations

import math

from kontext_fast.errors import InvalidInput

SECONDS_PER_HOUR = 3600.0

RHO_MAX = 0.7
"""Highest load at the peak, as a fraction of what the fleet could do: above it, waiting grows steeply."""

_ROUNDING = 1e-12


def images_per_hour(seconds: float, images_per_call: int) -> float:
    """What one GPU does when it never waits; `seconds` per call, above 0."""
    return SECONDS_PER_HOUR * images_per_call / seconds


def gpus_needed(
    seconds: float, images_per_call: int, peak_images_per_hour: float, *, rho_max: float = RHO_MAX, sold_by: int = 1
) -> int:
    """Whole GPUs, at least one, in multiples of `sold_by`; `seconds` per call, 0 or more.

    Raises InvalidInput for a headroom that is not in 0 (excluded) to 1.
    """
    if not 0 < rho_max <= 1:
        raise InvalidInput(f"The highest load is {rho_max}: give a fraction above 0 and up to 1.")
    wanted = peak_images_per_hour * seconds / (SECONDS_PER_HOUR * images_per_call * rho_max)
    gpus = max(1, math.ceil(wanted * (1 - _ROUNDING)))
    return math.ceil(gpus / sold_by) * sold_by


def most_images_per_day(
    gpus: int, seconds: float, images_per_call: int, *, peak_share: float, rho_max: float = RHO_MAX
) -> float:
    """The largest day whose busiest hour `gpus` can serve."""
    return gpus * images_per_hour(seconds, images_per_call) * rho_max / peak_share
