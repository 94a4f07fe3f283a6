"""What a picture of the shapes world consists of: a background and up to four shapes, in fractions of its width.

Colors of shapes are saturated and those of backgrounds are pale, so that the color of every pixel of a clean image
shows to which of the two it belongs. Shapes never touch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Color = tuple[int, int, int]
Point = tuple[float, float]

KINDS = ("circle", "square", "triangle", "star", "ring", "diamond", "cross")

COLORS: dict[str, Color] = {
    "red": (214, 34, 40),
    "orange": (255, 138, 0),
    "yellow": (248, 216, 16),
    "green": (24, 148, 56),
    "cyan": (0, 192, 206),
    "blue": (30, 70, 205),
    "purple": (128, 40, 176),
    "pink": (240, 84, 170),
    "black": (28, 28, 32),
}

TINTS: dict[str, Color] = {
    "white": (248, 248, 246),
    "gray": (196, 198, 202),
    "red": (250, 190, 186),
    "orange": (253, 216, 168),
    "yellow": (250, 244, 188),
    "green": (198, 234, 198),
    "cyan": (178, 238, 242),
    "blue": (182, 204, 250),
    "purple": (224, 198, 246),
}
"""Background colors, named like the shapes' but pale."""

RADII = {"small": 0.075, "medium": 0.115, "large": 0.165}
DOT_RADIUS = 0.042

PLACES: dict[str, Point] = {
    "top left": (0.19, 0.19),
    "top": (0.5, 0.19),
    "top right": (0.81, 0.19),
    "left": (0.19, 0.5),
    "center": (0.5, 0.5),
    "right": (0.81, 0.5),
    "bottom left": (0.19, 0.81),
    "bottom": (0.5, 0.81),
    "bottom right": (0.81, 0.81),
}
PLACE_JITTER = 0.05

PATTERNS = ("plain", "gradient", "stripes", "checks", "speckle")
PERIODS = (0.1875, 0.25)
SPECKLE_CELLS = 12
MIN_TINT_CONTRAST = 48.0
"""Distance in RGB between the two tints of a pattern, out of 255 a channel."""


@dataclass(frozen=True)
class Shape:
    kind: str
    color: str
    x: float
    y: float
    radius: float

    @property
    def size(self) -> str:
        """The named size that is nearest."""
        return min(RADII, key=lambda name: abs(RADII[name] - self.radius))

    @property
    def place(self) -> str:
        """The named place that is nearest."""
        return min(PLACES, key=lambda name: (PLACES[name][0] - self.x) ** 2 + (PLACES[name][1] - self.y) ** 2)


@dataclass(frozen=True)
class Background:
    """A pattern of one or two tints. `angle` counts quarter turns; `shift` moves the pattern."""

    pattern: str
    tint: str
    second_tint: str
    angle: int = 0
    period: float = 0.25
    shift: Point = (0.0, 0.0)


@dataclass(frozen=True)
class Scene:
    shapes: tuple[Shape, ...]
    background: Background

    def without(self, shape: Shape) -> Scene:
        return replace(self, shapes=tuple(other for other in self.shapes if other is not shape))

    def exchanging(self, shape: Shape, new: Shape) -> Scene:
        return replace(self, shapes=tuple(new if other is shape else other for other in self.shapes))

    def adding(self, shapes: Sequence[Shape]) -> Scene:
        return replace(self, shapes=(*self.shapes, *shapes))

    def is_held_out(self) -> bool:
        """Whether training never sees a scene with this combination of shapes, colors and background.

        Positions and sizes do not enter, so a held-out scene is new as a combination and not only by a few pixels.
        """
        parts = sorted(f"{shape.color} {shape.kind}" for shape in self.shapes)
        parts += [self.background.pattern, self.background.tint]
        return hashlib.sha256("|".join(parts).encode()).digest()[0] % 8 == 0


def _fits_frame(x: float, y: float, radius: float) -> bool:
    margin = 1.12 * radius + 0.008
    return margin <= x <= 1 - margin and margin <= y <= 1 - margin


def is_clear(scene: Scene, shape: Shape, ignoring: Shape | None = None) -> bool:
    """Whether `shape` lies inside the frame and touches no shape of `scene`."""
    if not _fits_frame(shape.x, shape.y, shape.radius):
        return False
    for other in scene.shapes:
        gap = 1.12 * (shape.radius + other.radius) + 0.02
        if other is not ignoring and (shape.x - other.x) ** 2 + (shape.y - other.y) ** 2 < gap**2:
            return False
    return True


def pick(rng: np.random.Generator, names: Iterable[str], besides: Collection[str] = ()) -> str:
    """One of `names` that is not in `besides`, all equally likely.

    `names` must be ordered (no set): the order decides which one a seed picks.
    """
    choice = [name for name in names if name not in besides]
    return choice[int(rng.integers(len(choice)))]


def random_background(rng: np.random.Generator, pattern: str | None = None) -> Background:
    tint = second = pick(rng, TINTS)
    while math.dist(TINTS[tint], TINTS[second]) < MIN_TINT_CONTRAST:
        second = pick(rng, TINTS)
    return Background(
        pattern=pattern or pick(rng, PATTERNS),
        tint=tint,
        second_tint=second,
        angle=int(rng.integers(4)),
        period=PERIODS[int(rng.integers(len(PERIODS)))],
        shift=(int(rng.integers(SPECKLE_CELLS)) / SPECKLE_CELLS, int(rng.integers(SPECKLE_CELLS)) / SPECKLE_CELLS),
    )


def random_scene(rng: np.random.Generator, count: int, pattern: str | None = None) -> Scene:
    """A scene of `count` shapes, no two alike in both kind and color, each near its own named place."""
    scene = Scene((), random_background(rng, pattern))
    places = list(PLACES.values())
    while len(scene.shapes) < count:
        near = places[int(rng.integers(len(places)))]
        x, y = (center + float(rng.uniform(-PLACE_JITTER, PLACE_JITTER)) for center in near)
        shape = Shape(pick(rng, KINDS), pick(rng, COLORS), x, y, RADII[pick(rng, RADII)])
        alike = any((shape.kind, shape.color) == (other.kind, other.color) for other in scene.shapes)
        if not alike and is_clear(scene, shape):
            scene = scene.adding([shape])
    return scene


def as_arrays(scene: Scene, slots: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The scene as numbers for the renderer: shapes (slots, 7) and background (11,), unused slots with kind -1.

    A shape is kind, x, y, radius, red, green, blue; a background is pattern, both colors, angle, period, shift.
    Raises ValueError where the scene has more shapes than slots.
    """
    if len(scene.shapes) > slots:
        raise ValueError(f"{len(scene.shapes)} shapes do not fit into {slots} slots")
    shapes = np.full((slots, 7), -1.0, dtype=np.float32)
    for row, shape in zip(shapes, scene.shapes, strict=False):
        row[:] = (KINDS.index(shape.kind), shape.x, shape.y, shape.radius, *(c / 255 for c in COLORS[shape.color]))
    back = scene.background
    colors = [c / 255 for c in (*TINTS[back.tint], *TINTS[back.second_tint])]
    numbers = [PATTERNS.index(back.pattern), *colors, back.angle, back.period, *back.shift]
    return shapes, np.asarray(numbers, dtype=np.float32)
