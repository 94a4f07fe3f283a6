"""Says which background pattern a picture shows, whatever its tints, angle and phase."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

PLAIN_SPREAD = 5.0
"""Standard deviation along the main color axis under which a background is plain, of 255 a channel."""
LEAST_AGREEMENT = 0.93
"""Share of pixels that stripes or checks must explain."""
LEAST_CRISPNESS = 0.72
"""Share of pixels that must have one of the two tints rather than a mixture."""
FEWEST_CHANGES = 4
"""Tint changes across the picture that make a pattern of stripes or checks."""
SPECKS = (35, 125)
"""Fewest and most specks; a clean picture has about 86."""


@dataclass(frozen=True)
class SeenBackground:
    """`pattern` is None where the background is none of the world's. Tints are the two ends of the color axis."""

    pattern: str | None
    tints: tuple[Floats, Floats]
    main_tint: Floats
    """The tint of the larger area."""
    off_axis: Floats
    """How far each pixel lies from a mixture of the two tints, (height, width)."""


def seen_background(pixels: npt.NDArray[np.uint8], covered: Mask) -> SeenBackground:
    """The background of `pixels`, (height, width, 3), where `covered` hides it."""
    picture = pixels.astype(np.float64)
    low, high, share, off_axis = _two_tints(picture, ~covered)
    pattern = _pattern(share, ~covered, float(np.linalg.norm(high - low)))
    main = high if (share[~covered] > 0.5).mean() > 0.5 else low
    return SeenBackground(pattern, (low, high), main, off_axis)


def _two_tints(picture: Floats, open_: Mask) -> tuple[Floats, Floats, Floats, Floats]:
    """Both tints by two-means along the main color axis, each pixel's share of the second, and what is off the axis."""
    colors = picture[open_]
    mean = colors.mean(0)
    axis = np.linalg.svd(colors[:: max(1, len(colors) // 2000)] - mean, full_matrices=False)[2][0]
    position = (picture - mean) @ axis
    low, high = (float(value) for value in np.percentile(position[open_], (5, 95)))
    for _ in range(8):
        upper = position[open_] > (low + high) / 2
        if upper.all() or not upper.any():
            break
        low, high = float(position[open_][~upper].mean()), float(position[open_][upper].mean())
    share = (position - low) / max(high - low, 1e-6)
    off_axis = np.linalg.norm(picture - mean - position[..., None] * axis, axis=-1)
    return mean + low * axis, mean + high * axis, share, off_axis


def _pattern(share: Floats, open_: Mask, contrast: float) -> str | None:
    if contrast * share[open_].std() < PLAIN_SPREAD:
        return "plain"
    if _is_gradient(share, open_):
        return "gradient"
    return _grid_pattern(share, open_) or ("speckle" if _is_speckle(share, open_) else None)


def _is_gradient(share: Floats, open_: Mask) -> bool:
    """Whether a plane along one axis explains the shares."""
    rows, columns = np.nonzero(open_)
    design = np.stack([columns, rows, np.ones_like(rows)], axis=1).astype(np.float64)
    values = share[open_]
    slopes, *_ = np.linalg.lstsq(design, values, rcond=None)
    residual = values - design @ slopes
    along, across = sorted(np.abs(slopes[:2]), reverse=True)
    return bool(1 - residual.var() / values.var() > 0.9 and across < 0.25 * along)


def _grid_pattern(share: Floats, open_: Mask) -> str | None:
    """Stripes and checks are products of a row and a column of signs; stripes have one of them constant."""
    crisp = np.mean((share[open_] < 0.22) | (share[open_] > 0.78))
    if crisp < LEAST_CRISPNESS:
        return None
    signs = np.where(open_, np.where(share > 0.5, 1.0, -1.0), 0.0)
    column = np.ones(signs.shape[1])
    best, rows, columns = 0.0, 0, 0
    for start in (np.ones(signs.shape[1]), signs[int(open_.sum(1).argmax())]):
        column = np.where(start == 0, 1.0, start)
        for _ in range(6):
            row = np.where(signs @ column >= 0, 1.0, -1.0)
            column = np.where(row @ signs >= 0, 1.0, -1.0)
        agreement = float(np.mean(signs[open_] == np.outer(row, column)[open_]))
        if agreement > best:
            best, rows, columns = agreement, _changes(row), _changes(column)
    if best < LEAST_AGREEMENT:
        return None
    if min(rows, columns) >= FEWEST_CHANGES:
        return "checks"
    if max(rows, columns) >= FEWEST_CHANGES and min(rows, columns) == 0:
        return "stripes"
    return None


def _changes(signs: Floats) -> int:
    return int((signs[1:] != signs[:-1]).sum())


def _is_speckle(share: Floats, open_: Mask) -> bool:
    """Many small separate dots of the rarer tint, as dense as the world's."""
    upper = share > 0.5
    rare = (upper if upper[open_].mean() < 0.5 else ~upper) & open_
    if not 0.02 < rare[open_].mean() < 0.25:
        return False
    pieces, _ = ndimage.label(rare)
    areas = np.bincount(pieces.ravel())[1:]
    specks = areas >= 3
    expected = np.asarray(SPECKS) * open_.mean()
    return bool(expected[0] <= specks.sum() <= expected[1] and np.median(areas[specks]) <= 30 and areas.max() <= 120)
