"""The edits of the shapes world: random edits, what each asks for, and one image that fulfils it.

`single-answer` edits have one right image; `open` edits have many, and their target is one of them. What an edit asks
for is an `Expectation`, which the judge compares with the shapes that it detects, never with the target itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from kontext_fast.datasets.shapes.scene import (
    COLORS,
    DOT_RADIUS,
    KINDS,
    PATTERNS,
    PLACES,
    RADII,
    TINTS,
    Background,
    Point,
    Scene,
    Shape,
    is_clear,
    pick,
    random_background,
)


@dataclass(frozen=True)
class Wanted:
    """A shape that the output must show; None is any value."""

    kind: str
    colors: frozenset[str]
    place: Point | None
    radius: float | None


@dataclass(frozen=True)
class Expectation:
    """What the output must show: the shapes that stay, the shapes that the edit asks for, and the background."""

    kept: tuple[Shape, ...]
    wanted: tuple[Wanted, ...]
    background: Background | None
    """The exact background, or None where any background of `pattern` will do."""
    pattern: str | None = None


@dataclass(frozen=True)
class Edit:
    """One edit of one scene. `words` fills the instruction's template; `target` is one right picture."""

    kind: str
    words: Mapping[str, str]
    target: Scene
    expected: Expectation

    @property
    def is_open(self) -> bool:
        return self.kind in OPEN_KINDS


def _named(scene: Scene, shape: Shape) -> str:
    """The shortest phrase that names `shape` alone."""
    if sum(other.kind == shape.kind for other in scene.shapes) == 1:
        return f"the {shape.kind}"
    return f"the {shape.color} {shape.kind}"


def _phrase(rng: np.random.Generator, scene: Scene, shape: Shape) -> str:
    """The shape's name, most often with its color even where the kind alone would do."""
    return _named(scene, shape) if rng.uniform() < 0.3 else f"the {shape.color} {shape.kind}"


def _any_shape(rng: np.random.Generator, scene: Scene) -> Shape:
    return scene.shapes[int(rng.integers(len(scene.shapes)))]


def _exact(shape: Shape) -> Wanted:
    return Wanted(shape.kind, frozenset({shape.color}), (shape.x, shape.y), shape.radius)


def _changed(kind: str, scene: Scene, old: Shape, new: Shape, words: Mapping[str, str]) -> Edit:
    """An edit with one answer: `old` becomes `new`, everything else stays."""
    kept = scene.without(old)
    return Edit(kind, words, scene.exchanging(old, new), Expectation(kept.shapes, (_exact(new),), scene.background))


def _recolor(rng: np.random.Generator, scene: Scene) -> Edit:
    old = _any_shape(rng, scene)
    new = replace(old, color=pick(rng, COLORS, besides=[old.color]))
    return _changed("recolor", scene, old, new, {"shape": _phrase(rng, scene, old), "color": new.color})


def _remove(rng: np.random.Generator, scene: Scene) -> Edit:
    old = _any_shape(rng, scene)
    target = scene.without(old)
    return Edit("remove", {"shape": _phrase(rng, scene, old)}, target, Expectation(target.shapes, (), scene.background))


def _move(rng: np.random.Generator, scene: Scene) -> Edit | None:
    old = _any_shape(rng, scene)
    place = pick(rng, PLACES, besides=[old.place])
    new = replace(old, x=PLACES[place][0], y=PLACES[place][1])
    if not is_clear(scene, new, ignoring=old):
        return None
    return _changed("move", scene, old, new, {"shape": _phrase(rng, scene, old), "place": place})


def _resize(rng: np.random.Generator, scene: Scene) -> Edit | None:
    old = _any_shape(rng, scene)
    size = pick(rng, RADII, besides=[old.size])
    new = replace(old, radius=RADII[size])
    if not is_clear(scene, new, ignoring=old):
        return None
    return _changed("resize", scene, old, new, {"shape": _phrase(rng, scene, old), "size": size})


def _replace(rng: np.random.Generator, scene: Scene) -> Edit | None:
    old = _any_shape(rng, scene)
    new = replace(old, kind=pick(rng, KINDS, besides=[old.kind]))
    if any((new.kind, new.color) == (other.kind, other.color) for other in scene.shapes):
        return None
    return _changed("replace", scene, old, new, {"shape": _phrase(rng, scene, old), "kind": new.kind})


def _background_color(rng: np.random.Generator, scene: Scene) -> Edit | None:
    tint = pick(rng, TINTS)
    if scene.background.pattern == "plain" and scene.background.tint == tint:
        return None
    background = Background("plain", tint, tint)
    target = replace(scene, background=background)
    return Edit("background color", {"color": tint}, target, Expectation(scene.shapes, (), background))


def _recolor_freely(rng: np.random.Generator, scene: Scene) -> Edit:
    old = _any_shape(rng, scene)
    colors = frozenset(COLORS) - {old.color}
    target = scene.exchanging(old, replace(old, color=pick(rng, COLORS, besides=[old.color])))
    wanted = Wanted(old.kind, colors, (old.x, old.y), old.radius)
    expected = Expectation(scene.without(old).shapes, (wanted,), scene.background)
    return Edit("recolor freely", {"shape": _phrase(rng, scene, old)}, target, expected)


def _free_shape(rng: np.random.Generator, scene: Scene, kind: str, color: str, radius: float) -> Shape | None:
    """A shape at a uniformly random clear place, or None where none was found in 60 tries."""
    for _ in range(60):
        x, y = (float(value) for value in rng.uniform(0.05, 0.95, size=2))
        shape = Shape(kind, color, x, y, radius)
        if is_clear(scene, shape):
            return shape
    return None


def _add(rng: np.random.Generator, scene: Scene) -> Edit | None:
    """Adds a shape; its place is always free, and its size and color sometimes."""
    kind, color, size = pick(rng, KINDS), pick(rng, COLORS), pick(rng, RADII)
    shape = _free_shape(rng, scene, kind, color, RADII[size])
    if shape is None:
        return None
    says_color, says_size = rng.uniform() < 0.5, rng.uniform() < 0.6
    described = " ".join([*([size] if says_size else []), *([color] if says_color else []), kind])
    wanted = Wanted(kind, frozenset({color} if says_color else COLORS), None, RADII[size] if says_size else None)
    expected = Expectation(scene.shapes, (wanted,), scene.background)
    return Edit("add", {"new": described}, scene.adding([shape]), expected)


NUMBERS = {3: "three", 4: "four", 5: "five"}


def _scatter(rng: np.random.Generator, scene: Scene) -> Edit | None:
    """Scatters a number of equal small dots."""
    count, color = int(rng.integers(3, 6)), pick(rng, COLORS)
    grown = scene
    for _ in range(count):
        dot = _free_shape(rng, grown, "circle", color, DOT_RADIUS)
        if dot is None:
            return None
        grown = grown.adding([dot])
    says_color = rng.uniform() < 0.5
    described = f"{NUMBERS[count]} {color} dots" if says_color else f"{NUMBERS[count]} dots"
    wanted = Wanted("circle", frozenset({color} if says_color else COLORS), None, DOT_RADIUS)
    return Edit("scatter", {"dots": described}, grown, Expectation(scene.shapes, (wanted,) * count, scene.background))


def _background_pattern(rng: np.random.Generator, scene: Scene) -> Edit:
    pattern = pick(rng, PATTERNS, besides=["plain", scene.background.pattern])
    target = replace(scene, background=random_background(rng, pattern))
    expected = Expectation(scene.shapes, (), None, pattern)
    return Edit("background pattern", {"pattern": pattern}, target, expected)


_DRAWS: dict[str, Callable[[np.random.Generator, Scene], Edit | None]] = {
    "recolor": _recolor,
    "remove": _remove,
    "move": _move,
    "resize": _resize,
    "replace": _replace,
    "background color": _background_color,
    "recolor freely": _recolor_freely,
    "add": _add,
    "scatter": _scatter,
    "background pattern": _background_pattern,
}
EDIT_KINDS = tuple(_DRAWS)
OPEN_KINDS = frozenset({"recolor freely", "add", "scatter", "background pattern"})


def random_edit(rng: np.random.Generator, scene: Scene, kind: str) -> Edit | None:
    """An edit of that kind, or None where this draw does not fit the scene (draw again, or another scene)."""
    return _DRAWS[kind](rng, scene)
