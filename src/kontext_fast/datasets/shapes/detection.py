"""Detects the shapes and the background in an image of the shapes world.

Shapes are found by color, one connected component each, and named by the template that covers the component best.
Nothing here knows what the image should show.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from kontext_fast.datasets.shapes.render import signed_distance
from kontext_fast.datasets.shapes.scene import COLORS, KINDS, Shape

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

COLOR_TOLERANCE = 60.0
"""Largest RGB distance (of 255 a channel) at which a pixel counts as having a shape's color."""
MEAN_COLOR_TOLERANCE = 36.0
"""The same for the mean over a shape's inside, where no edge pixels blur it."""
SMALLEST_AREA = 24
"""Pixels, at 128 x 128; smaller components are left to the check for stray pixels."""
WORST_FIT = 0.72
"""Least overlap (intersection over union) of a component with its template."""
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
class DetectedShape:
    """A connected component of one color. `kind` is None where no template fits or the color is off."""

    kind: str | None
    color: str
    x: float
    y: float
    radius: float

    def as_shape(self) -> Shape:
        return Shape(self.kind or "circle", self.color, self.x, self.y, self.radius)


def detect_shapes(pixels: npt.NDArray[np.uint8]) -> list[DetectedShape]:
    """The shapes in `pixels`, (height, width, 3) uint8."""
    picture = pixels.astype(np.float64)
    palette = np.asarray(list(COLORS.values()), dtype=np.float64)
    distances = np.linalg.norm(picture[:, :, None, :] - palette, axis=-1)
    nearest, solid = distances.argmin(-1), distances.min(-1) < COLOR_TOLERANCE
    shapes = []
    for index, color in enumerate(COLORS):
        components, _ = ndimage.label(solid & (nearest == index), structure=np.ones((3, 3)))
        for label, window in enumerate(ndimage.find_objects(components), start=1):
            mask = components[window] == label
            if mask.sum() >= SMALLEST_AREA and ndimage.binary_erosion(mask).sum() >= 4:
                shapes.append(_fit_template(mask, window, color, picture))
    return shapes


def _fit_template(mask: Mask, window: tuple[slice, slice], color: str, picture: Floats) -> DetectedShape:
    """The template that overlaps `mask` best, placed by the mask's centroid and area."""
    height, width = picture.shape[:2]
    rows, columns = np.nonzero(mask)
    center_x, center_y = columns.mean() + window[1].start + 0.5, rows.mean() + window[0].start + 0.5
    area = float(mask.sum())
    inside = ndimage.binary_erosion(mask)
    mean_color = picture[window][inside].mean(0)
    pure = float(np.linalg.norm(mean_color - np.asarray(COLORS[color]))) < MEAN_COLOR_TOLERANCE
    best_kind, best_overlap, best = None, 0.0, (center_x, center_y, 1.0)
    y, x = np.mgrid[window[0].start - 2 : window[0].stop + 2, window[1].start - 2 : window[1].stop + 2] + 0.5
    padded = np.pad(mask, 2)
    for kind in KINDS:
        unit_area, offset_x, offset_y = _template(kind)
        radius = float(np.sqrt(area / unit_area))
        left, top = center_x - offset_x * radius, center_y - offset_y * radius
        covered = signed_distance(kind, (x - left) / radius, (y - top) / radius, np) < 0
        overlap = float((covered & padded).sum() / (covered | padded).sum())
        if overlap > best_overlap:
            best_kind, best_overlap, best = kind, overlap, (left, top, radius)
    left, top, radius = best
    detected_kind = best_kind if pure and best_overlap >= WORST_FIT else None
    return DetectedShape(detected_kind, color, left / width, top / height, radius / width)


@cache
def _template(kind: str) -> tuple[float, float, float]:
    """Area and centroid of the shape of radius 1."""
    step = 0.01
    y, x = np.mgrid[-1.3:1.3:step, -1.3:1.3:step]
    inside = signed_distance(kind, x, y, np) < 0
    return float(inside.sum()) * step**2, float(x[inside].mean()), float(y[inside].mean())


def near_shapes(shapes: list[DetectedShape], size: int, margin: float) -> Mask:
    """Pixels inside a shape or within `margin` pixels of it, (size, size)."""
    mask = np.zeros((size, size), dtype=np.bool_)
    for shape in shapes:
        mask |= _distance(shape, size) < margin
    return mask


def near_edges(shapes: list[DetectedShape], size: int, margin: float) -> Mask:
    """Pixels within `margin` pixels of the edge of a shape, (size, size)."""
    mask = np.zeros((size, size), dtype=np.bool_)
    for shape in shapes:
        mask |= np.abs(_distance(shape, size)) < margin
    return mask


def _distance(shape: DetectedShape, size: int) -> Floats:
    """Signed distance in pixels to the shape's edge."""
    y, x = (np.mgrid[0:size, 0:size] + 0.5) / size
    unit: Floats = signed_distance(
        shape.kind or "circle", (x - shape.x) / shape.radius, (y - shape.y) / shape.radius, np
    )
    return unit * shape.radius * size


@dataclass(frozen=True)
class DetectedBackground:
    """`pattern` is None where no known pattern fits. The tints are the two ends of the color axis."""

    pattern: str | None
    tints: tuple[Floats, Floats]
    main_tint: Floats
    """The tint of the larger area."""
    off_axis: Floats
    """How far each pixel lies from a mixture of the two tints, (height, width)."""


def detect_background(pixels: npt.NDArray[np.uint8], covered: Mask) -> DetectedBackground:
    """The background of `pixels`, (height, width, 3), where `covered` hides it."""
    picture = pixels.astype(np.float64)
    low, high, share, off_axis = _two_tints(picture, ~covered)
    pattern = _pattern(share, ~covered, float(np.linalg.norm(high - low)))
    main = high if (share[~covered] > 0.5).mean() > 0.5 else low
    return DetectedBackground(pattern, (low, high), main, off_axis)


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
    """Whether there are many small separate dots of the rarer tint, as dense as `render` draws them."""
    upper = share > 0.5
    rare = (upper if upper[open_].mean() < 0.5 else ~upper) & open_
    if not 0.02 < rare[open_].mean() < 0.25:
        return False
    components, _ = ndimage.label(rare)
    areas = np.bincount(components.ravel())[1:]
    specks = areas >= 3
    expected = np.asarray(SPECKS) * open_.mean()
    return bool(expected[0] <= specks.sum() <= expected[1] and np.median(areas[specks]) <= 30 and areas.max() <= 120)
