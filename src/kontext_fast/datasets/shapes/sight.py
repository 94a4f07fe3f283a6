"""Reads a picture of the shapes world back: which shapes are there, and what the background is.

Shapes are found by color, one connected piece each, and named by the template that covers the piece best. Nothing
here knows what the picture was meant to show.
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
"""Pixels, at 128 x 128; smaller pieces are left to the check for strays."""
WORST_FIT = 0.72
"""Least overlap (intersection over union) of a piece with its template."""


@dataclass(frozen=True)
class SeenShape:
    """A piece of one color. `kind` is None where no template fits or the color is off."""

    kind: str | None
    color: str
    x: float
    y: float
    radius: float

    def as_shape(self) -> Shape:
        return Shape(self.kind or "circle", self.color, self.x, self.y, self.radius)


def seen_shapes(pixels: npt.NDArray[np.uint8]) -> list[SeenShape]:
    """The shapes in `pixels`, (height, width, 3) uint8."""
    picture = pixels.astype(np.float64)
    palette = np.asarray(list(COLORS.values()), dtype=np.float64)
    distances = np.linalg.norm(picture[:, :, None, :] - palette, axis=-1)
    nearest, solid = distances.argmin(-1), distances.min(-1) < COLOR_TOLERANCE
    found = []
    for index, color in enumerate(COLORS):
        pieces, _ = ndimage.label(solid & (nearest == index), structure=np.ones((3, 3)))
        for piece, window in enumerate(ndimage.find_objects(pieces), start=1):
            mask = pieces[window] == piece
            if mask.sum() >= SMALLEST_AREA and ndimage.binary_erosion(mask).sum() >= 4:
                found.append(_named(mask, window, color, picture))
    return found


def _named(mask: Mask, window: tuple[slice, slice], color: str, picture: Floats) -> SeenShape:
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
    kind_seen = best_kind if pure and best_overlap >= WORST_FIT else None
    return SeenShape(kind_seen, color, left / width, top / height, radius / width)


@cache
def _template(kind: str) -> tuple[float, float, float]:
    """Area and centroid of the shape of radius 1."""
    step = 0.01
    y, x = np.mgrid[-1.3:1.3:step, -1.3:1.3:step]
    inside = signed_distance(kind, x, y, np) < 0
    return float(inside.sum()) * step**2, float(x[inside].mean()), float(y[inside].mean())


def near_shapes(shapes: list[SeenShape], size: int, margin: float) -> Mask:
    """Pixels inside a shape or within `margin` pixels of it, (size, size)."""
    mask = np.zeros((size, size), dtype=np.bool_)
    for shape in shapes:
        mask |= _distance(shape, size) < margin
    return mask


def near_edges(shapes: list[SeenShape], size: int, margin: float) -> Mask:
    """Pixels within `margin` pixels of the edge of a shape, (size, size)."""
    mask = np.zeros((size, size), dtype=np.bool_)
    for shape in shapes:
        mask |= np.abs(_distance(shape, size)) < margin
    return mask


def _distance(shape: SeenShape, size: int) -> Floats:
    """Signed distance in pixels to the shape's edge."""
    y, x = (np.mgrid[0:size, 0:size] + 0.5) / size
    unit: Floats = signed_distance(
        shape.kind or "circle", (x - shape.x) / shape.radius, (y - shape.y) / shape.radius, np
    )
    return unit * shape.radius * size
