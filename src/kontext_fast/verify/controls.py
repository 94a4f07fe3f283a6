"""What keeps the metrics honest: outputs that are worse on purpose, and others that are not.

A metric that does not see a control that it must see, or that sees a loss where there is none, is blind in that
verification, and no verdict rests on it. What each metric must see is declared beside it.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binom

from kontext_fast.metrics.base import Control, Metric, Role
from kontext_fast.stats.bounds import mean_bounds
from kontext_fast.verify.comparisons import ByItem, Fidelity, item_means
from kontext_fast.verify.margins import Margins

if TYPE_CHECKING:
    from PIL.Image import Image

CONTROL_ITEMS = 16
"""Items of every control, unless there are fewer."""
BLUR_RADIUS = 1.0
"""Standard deviation in pixels."""
JPEG_QUALITY = 30
CACHE_FACTOR = 4

RERUN = "re-run"
OTHER_ATTENTION = "other attention backend"
OTHER_POSITION = "other batch position"
OTHER_PRECISION = "other precision"
FLOORS = (RERUN, OTHER_ATTENTION, OTHER_POSITION, OTHER_PRECISION)
"""Baseline again, differing by rounding at most: the floor of every distance."""
POSITIVE = (RERUN, OTHER_ATTENTION)
"""Those in which a metric of quality must see no loss."""


@dataclass(frozen=True)
class Sighting:
    """What a metric made of one control."""

    metric: str
    control: str
    due: bool
    """True where it had to be seen, False where nothing was to be seen."""
    seen: bool | None
    """None where it could not be looked at."""
    idle: bool = False
    """True where the control changed no output, bit for bit: then it tries no metric."""

    @property
    def right(self) -> bool | None:
        return None if self.seen is None else self.seen is self.due


def spoiled(output: Image, control: Control, source: Image) -> Image:
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


def sightings(
    metric: type[Metric],
    margins: Margins,
    *,
    fidelity: Fidelity | None,
    distances: Mapping[str, ByItem],
    differences: Mapping[str, ByItem],
    idle: Collection[str] = (),
) -> tuple[Sighting, ...]:
    """What `metric` made of each control, from its values by control.

    `distances` to baseline are for a metric of fidelity and `differences` of scores for one of quality. `idle` are the
    controls that changed no output, such as a cache which never found anything to reuse.
    """
    found = []
    for control in sorted(metric.must_detect):
        if control in idle:
            found.append(Sighting(metric.name, control.value, True, None, idle=True))
            continue
        if metric.role is Role.FIDELITY:
            seen = _farther_than_rounding(fidelity, distances.get(control, {}), margins.confidence)
        else:
            seen = _shows_loss(differences.get(control, {}), margins, bounded=metric.bounded)
        found.append(Sighting(metric.name, control.value, True, seen))
    if metric.role is Role.QUALITY:
        # Rounding may lower a score a little, item after item; that it would cost a verdict is what must not happen.
        harmless = margins.primary.get(metric.name, 0.0)
        for control_name in POSITIVE:
            seen = _shows_loss(differences.get(control_name, {}), margins, bounded=metric.bounded, beyond=harmless)
            found.append(Sighting(metric.name, control_name, False, seen))
    return tuple(found)


def blindness(found: Sequence[Sighting]) -> str | None:
    """Why a metric is blind, as a clause, from its sightings; None where it is not."""
    missed = [one.control for one in found if one.due and one.seen is False]
    unseen = [one.control for one in found if one.due and one.seen is None and not one.idle]
    imagined = [one.control for one in found if not one.due and one.seen]
    if missed:
        return f"it missed {', '.join(missed)}"
    if imagined:
        return f"it saw a loss in {', '.join(imagined)}"
    # Nothing shows that it can see: a control that failed must not make a metric trusted.
    if unseen:
        return f"it could not be tried on {', '.join(unseen)}"
    return None if any(one.due and one.seen for one in found) else "no control had any effect"


def _farther_than_rounding(fidelity: Fidelity | None, distances: ByItem, confidence: float) -> bool | None:
    """Whether more than half of the items lie farther from baseline than rounding takes them, by a sign test.

    Every item is held against itself: items differ in what a change does to them far more than controls do, so that
    one whose picture turns out otherwise by rounding alone would hide the rest in a comparison of means.
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


def _shows_loss(differences: ByItem, margins: Margins, *, bounded: bool, beyond: float = 0.0) -> bool | None:
    """Whether the mean loss is larger than `beyond`, and no accident."""
    values = item_means(differences)
    if len(values) < 2:
        return None
    found = mean_bounds(values, margins.confidence, bounded=bounded)
    return bool(np.all((found.upper < 0) & (found.mean < -beyond)))
