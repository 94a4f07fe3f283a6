"""Checks of the metrics themselves: outputs that are worse on purpose, and others that differ by rounding only.

A metric that misses a control which it must detect, or that finds a loss where there is none, is insensitive in that
verification, and no verdict rests on it. Which controls a metric must detect is declared in its own file.
"""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binom

from kontext_fast.metrics.base import Control, Metric, Role
from kontext_fast.stats.bounds import mean_bounds
from kontext_fast.verify.comparisons import ByItem, FidelityDistances, item_means
from kontext_fast.verify.margins import Margins

if TYPE_CHECKING:
    from PIL.Image import Image

CONTROL_ITEMS = 16
"""Items of every control at least, unless there are fewer."""
CONTROL_SHARE = 1 / 4
"""Of the items, where that is more: a preset that rounds only can be told from one that does more only as well as the
floor is known."""
CONTROL_BATCHES = 2
"""The control items take at least so many calls: what one call leaves behind shows only in the next one."""
BLUR_RADIUS = 1.0
"""Standard deviation in pixels."""
JPEG_QUALITY = 30
CACHE_FACTOR = 4

RERUN = "re-run"
OTHER_ATTENTION = "other attention backend"
OTHER_POSITION = "other batch position"
OTHER_PRECISION = "other precision"
FLOOR_ARMS = (RERUN, OTHER_ATTENTION, OTHER_POSITION, OTHER_PRECISION)
"""Baseline again, differing by rounding at most: the floor of every distance."""
NO_LOSS_ARMS = (RERUN, OTHER_ATTENTION)
"""Arms of the floor in which a quality metric must find no loss."""


@dataclass(frozen=True)
class ControlCheck:
    """Whether a metric found a difference in one control."""

    metric: str
    control: str
    expected: bool
    """True for a difference that must be detected, False where there is none."""
    detected: bool | None
    """None where it could not be tested."""
    inert: bool = False
    """True where the control changed no output, bit for bit, so that it tests no metric."""

    @property
    def passed(self) -> bool | None:
        return None if self.detected is None else self.detected is self.expected


def control_count(items: int, at_least: int) -> int:
    """How many of `items` items the controls take: where there are enough, as many in each of their calls.

    What a call leaves behind in buffers of its shape shows only in a call of the same shape.
    """
    each = math.ceil(max(at_least, int(CONTROL_SHARE * items)) / CONTROL_BATCHES)
    return min(items, CONTROL_BATCHES * each)


def degrade(output: Image, control: Control, source: Image) -> Image:
    """A copy of an output, made worse as `control` says, with the input image `source`; for PICTURE_CONTROLS."""
    from PIL import Image as PILImage
    from PIL import ImageFilter

    if control is Control.BLUR:
        return output.filter(ImageFilter.GaussianBlur(BLUR_RADIUS))
    if control is Control.JPEG:
        file = io.BytesIO()
        output.convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY)
        with PILImage.open(file) as compressed:
            return compressed.convert("RGB")
    if control is Control.UNEDITED:
        return source.resize(output.size)
    raise ValueError(f"{control} is not made from images alone")


def sensitivity_checks(
    metric: type[Metric],
    margins: Margins,
    *,
    fidelity: FidelityDistances | None,
    distances: Mapping[str, ByItem],
    differences: Mapping[str, ByItem],
    inert: Collection[str] = (),
) -> tuple[ControlCheck, ...]:
    """Checks of `metric` with every control, from its values by control.

    `distances` to baseline are for a fidelity metric and `differences` of scores for a quality metric. `inert` are the
    controls that changed no output, such as a cache which never found anything to reuse.
    """
    checks = []
    for control in sorted(metric.must_detect):
        if control in inert:
            checks.append(ControlCheck(metric.name, control.value, expected=True, detected=None, inert=True))
            continue
        if metric.role is Role.FIDELITY:
            detected = _is_beyond_rounding(fidelity, distances.get(control, {}), margins.confidence)
        else:
            detected = _has_loss(differences.get(control, {}), margins, bounded=metric.bounded)
        checks.append(ControlCheck(metric.name, control.value, expected=True, detected=detected))
    if metric.role is Role.QUALITY:
        # Rounding may lower a score a little, item after item; it must not cost a verdict.
        tolerated = margins.primary.get(metric.name, 0.0)
        for arm in NO_LOSS_ARMS:
            detected = _has_loss(differences.get(arm, {}), margins, bounded=metric.bounded, beyond=tolerated)
            checks.append(ControlCheck(metric.name, arm, expected=False, detected=detected))
    return tuple(checks)


def insensitivity(checks: Sequence[ControlCheck]) -> str | None:
    """Why a metric is insensitive, as a clause, from its checks; None where it is not."""
    missed = [check.control for check in checks if check.expected and check.detected is False]
    untested = [check.control for check in checks if check.expected and check.detected is None and not check.inert]
    false_losses = [check.control for check in checks if not check.expected and check.detected]
    if missed:
        return f"it missed {', '.join(missed)}"
    if false_losses:
        return f"it found a loss in {', '.join(false_losses)}"
    # A control that failed must not make a metric trusted.
    if untested:
        return f"it could not be tested with {', '.join(untested)}"
    return None if any(check.expected and check.detected for check in checks) else "no control had any effect"


def _is_beyond_rounding(fidelity: FidelityDistances | None, distances: ByItem, confidence: float) -> bool | None:
    """Whether more than half of the items are farther from baseline than rounding takes them, by a sign test.

    Every item is compared with itself: items differ far more in their response to a change than controls do, so that
    in a comparison of means, one item which rounding alone turns into another image would hide all others.
    """
    if fidelity is None:
        return None
    floors: dict[str, float] = {}
    for by_item in fidelity.floors.values():
        for item, values in by_item.items():
            floors[item] = max(floors.get(item, 0.0), fmean(values))
    shared = [(fmean(values), floors[item]) for item, values in distances.items() if item in floors]
    if not shared:
        return None
    farther = sum(distance > floor for distance, floor in shared)
    return bool(binom.sf(farther - 1, len(shared), 0.5) < 1 - confidence)


def _has_loss(differences: ByItem, margins: Margins, *, bounded: bool, beyond: float = 0.0) -> bool | None:
    """Whether the mean loss is significant and larger than `beyond`."""
    values = item_means(differences)
    if len(values) < 2:
        return None
    bounds = mean_bounds(values, margins.confidence, bounded=bounded)
    return bool(np.all((bounds.upper < 0) & (bounds.mean < -beyond)))
