"""Draws scenes as anti-aliased pictures, by signed distances: one image with numpy, a batch on a GPU with torch.

Both run the same expressions: `xp` is the array module, and only functions of the same name in both are used.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from kontext_fast.datasets.shapes.scene import KINDS, PATTERNS, SPECKLE_CELLS, Scene, as_arrays

SPECK_RADIUS = 0.26
"""In speckle cells."""
_SPECKS = np.random.default_rng(7).uniform(0.26, 0.74, size=(SPECKLE_CELLS, SPECKLE_CELLS, 2)).astype(np.float32)
_SPECK_KEPT = np.random.default_rng(8).uniform(size=(SPECKLE_CELLS, SPECKLE_CELLS)) < 0.6


def signed_distance(kind: str, x: Any, y: Any, xp: Any) -> Any:
    """Distance to the edge of a shape of radius 1 at the origin, negative inside; y points down."""
    ax, ay = xp.abs(x), xp.abs(y)
    if kind == "circle":
        return xp.sqrt(x * x + y * y) - 1.0
    if kind == "square":
        return xp.maximum(ax, ay) - 0.88
    if kind == "triangle":
        y = y - 0.29
        return xp.maximum(y, 0.866 * ax - 0.5 * y) - 0.62
    if kind == "star":
        return _star_distance(x, y, xp)
    if kind == "ring":
        return xp.abs(xp.sqrt(x * x + y * y) - 0.76) - 0.26
    if kind == "diamond":
        return (ax + ay - 1.12) * 0.7071
    if kind == "cross":
        return xp.minimum(xp.maximum(ax - 1.0, ay - 0.34), xp.maximum(ay - 1.0, ax - 0.34))
    raise ValueError(f"no shape is called {kind!r}")


def _star_distance(x: Any, y: Any, xp: Any) -> Any:
    """Five points: the plane is folded onto one tenth of the star, whose edge is a straight line."""
    sector = 2 * math.pi / 5
    angle = xp.arctan2(x, -y)
    folded = xp.abs(angle - sector * xp.round(angle / sector))
    length = xp.sqrt(x * x + y * y)
    outer, inner = 1.12, 0.50
    px, py = length * xp.cos(folded), length * xp.sin(folded)
    dx, dy = inner * math.cos(sector / 2) - outer, inner * math.sin(sector / 2)
    norm = math.hypot(dx, dy)
    return ((px - outer) * dy - py * dx) / norm


def _pattern_share(background: Any, u: Any, v: Any, size: int, xp: Any) -> Any:
    """How much of the second tint each pixel has, (batch, height, width) in 0..1."""
    batch = background.shape[0]
    pattern, angle = background[:, 0], background[:, 7]
    period, shift_x, shift_y = (background[:, i].reshape(batch, 1, 1) for i in (8, 9, 10))
    across = xp.where((angle % 2 == 0).reshape(batch, 1, 1), u, v)
    ramp = xp.where((angle < 2).reshape(batch, 1, 1), across, 1.0 - across)

    def wave(position: Any, shift: Any) -> Any:
        """A square wave in 0..1 with edges one pixel wide."""
        phase = (position + shift) / period
        distance = xp.abs(phase - xp.round(phase)) - 0.25
        return xp.clip(0.5 + distance * period * size, 0.0, 1.0)

    columns, rows = wave(u, shift_x), wave(v, shift_y)
    shares = {
        "plain": 0.0 * (u + v + shift_x),
        "gradient": ramp + 0.0 * shift_x,
        "stripes": wave(across, shift_x),
        "checks": columns * (1.0 - rows) + rows * (1.0 - columns),
        "speckle": _specks(background, u, v, size, xp),
    }
    share = shares["plain"]
    for index, name in enumerate(PATTERNS):
        share = xp.where((pattern == index).reshape(batch, 1, 1), shares[name], share)
    return share


def _specks(background: Any, u: Any, v: Any, size: int, xp: Any) -> Any:
    """Small discs, one a cell of a fixed random table that each scene shifts by whole cells."""
    batch = background.shape[0]
    column, row = xp.floor(u * SPECKLE_CELLS), xp.floor(v * SPECKLE_CELLS)
    shift_x, shift_y = (xp.round(background[:, i] * SPECKLE_CELLS).reshape(batch, 1, 1) for i in (9, 10))
    index = ((row + shift_y) % SPECKLE_CELLS) * SPECKLE_CELLS + (column + shift_x) % SPECKLE_CELLS
    if xp is np:
        index = index.astype(np.int64)
        table, kept = _SPECKS.reshape(-1, 2), _SPECK_KEPT.reshape(-1)
    else:
        index = index.long()
        table, kept = (
            xp.as_tensor(a, device=background.device) for a in (_SPECKS.reshape(-1, 2), _SPECK_KEPT.reshape(-1))
        )
    dx = u * SPECKLE_CELLS - column - table[:, 0][index]
    dy = v * SPECKLE_CELLS - row - table[:, 1][index]
    distance = xp.sqrt(dx * dx + dy * dy) - SPECK_RADIUS
    return xp.where(kept[index], xp.clip(0.5 - distance * (size / SPECKLE_CELLS), 0.0, 1.0), 0.0 * distance)


def render_arrays(shapes: Any, background: Any, size: int, xp: Any) -> Any:
    """Pictures (batch, size, size, 3), float32 in 0..1, of stacked `as_arrays`: (batch, slots, 7) and (batch, 11)."""
    batch, slots = shapes.shape[:2]
    grid = (xp.arange(size) + 0.5) / size if xp is np else (xp.arange(size, device=shapes.device) + 0.5) / size
    if xp is np:
        grid = grid.astype(np.float32)
    u, v = grid.reshape(1, 1, size), grid.reshape(1, size, 1)
    share = _pattern_share(background, u, v, size, xp).reshape(batch, size, size, 1)
    first, second = background[:, 1:4].reshape(batch, 1, 1, 3), background[:, 4:7].reshape(batch, 1, 1, 3)
    picture = first * (1.0 - share) + second * share
    for slot in range(slots):
        for index, kind in enumerate(KINDS):
            chosen = xp.where(shapes[:, slot, 0] == index)[0]
            if len(chosen) == 0:
                continue
            row = shapes[chosen, slot].reshape(len(chosen), 7, 1, 1)
            radius = row[:, 3]
            distance = signed_distance(kind, (u - row[:, 1]) / radius, (v - row[:, 2]) / radius, xp) * radius
            cover = xp.clip(0.5 - distance * size, 0.0, 1.0).reshape(len(chosen), size, size, 1)
            color = shapes[chosen, slot, 4:7].reshape(len(chosen), 1, 1, 3)
            picture[chosen] = picture[chosen] * (1.0 - cover) + color * cover
    return picture


def render(scene: Scene, size: int = 128) -> Image.Image:
    """The scene as an RGB picture of `size` x `size` pixels."""
    return Image.fromarray(to_uint8(render_float(scene, size)))


def render_float(scene: Scene, size: int = 128) -> npt.NDArray[np.float32]:
    """The scene as (size, size, 3) float32 in 0..1."""
    shapes, background = as_arrays(scene, max(1, len(scene.shapes)))
    picture: npt.NDArray[np.float32] = render_arrays(shapes[None], background[None], size, np)[0]
    return picture


def to_uint8(picture: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return np.asarray(np.round(picture * 255), dtype=np.uint8)
