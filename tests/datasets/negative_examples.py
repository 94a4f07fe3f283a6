"""Images that are wrong on purpose, one class each, and others that are right, to test the judge with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image

from kontext_fast.datasets.shapes.dataset import ShapesItem
from kontext_fast.datasets.shapes.edits import Edit, random_edit
from kontext_fast.datasets.shapes.render import render
from kontext_fast.datasets.shapes.scene import (
    COLORS,
    DOT_RADIUS,
    KINDS,
    PLACES,
    RADII,
    TINTS,
    Background,
    Scene,
    Shape,
    is_clear,
    pick,
)

Picture = Image.Image | None
"""None where the class makes no sense for an item."""


def another_realization(item: ShapesItem, seed: int) -> Scene | None:
    """Another scene that fulfils the same open edit, by drawing edits of its kind until one asks for the same."""
    if not item.open:
        return None
    rng = np.random.default_rng([seed, int(item.id, 16) % 2**32])
    for _ in range(4000):
        edit: Edit | None = random_edit(rng, item.scene, item.kind)
        if edit is not None and edit.expected == item.edit.expected:
            return edit.target
    raise AssertionError(f"no second realization of {item.instruction!r} was found")


def _altered(item: ShapesItem, alter: Callable[[np.random.Generator, Shape], Shape]) -> Picture:
    """The target with one of its shapes altered; None where it has none or nothing clear was found."""
    rng = np.random.default_rng(int(item.id, 16) % 2**32)
    target = item.edit.target
    if not target.shapes:
        return None
    for _ in range(200):
        old = target.shapes[int(rng.integers(len(target.shapes)))]
        new = alter(rng, old)
        if is_clear(target, new, ignoring=old):
            return render(target.exchanging(old, new))
    return None


def unedited(item: ShapesItem) -> Picture:
    return item.image


def wrong_color(item: ShapesItem) -> Picture:
    """A shape that was to be kept, or whose color the edit names, in another color."""
    fixed = [shape for shape in item.edit.target.shapes if _color_is_fixed(item, shape)]
    if not fixed:
        return None
    rng = np.random.default_rng(int(item.id, 16) % 2**32)
    old = fixed[int(rng.integers(len(fixed)))]
    new = replace(old, color=pick(rng, COLORS, besides=[old.color]))
    return render(item.edit.target.exchanging(old, new))


def _color_is_fixed(item: ShapesItem, shape: Shape) -> bool:
    if shape in item.edit.expected.kept:
        return True
    return all(len(wanted.colors) == 1 for wanted in item.edit.expected.wanted)


def wrong_place(item: ShapesItem) -> Picture:
    """A shape whose place matters, far from where it should be."""
    free = {"add", "scatter"}
    fixed = item.edit.expected.kept if item.kind in free else item.edit.target.shapes
    if not fixed:
        return None
    rng = np.random.default_rng(int(item.id, 16) % 2**32)
    for _ in range(200):
        old = fixed[int(rng.integers(len(fixed)))]
        x, y = PLACES[pick(rng, PLACES)]
        new = replace(old, x=x, y=y)
        if np.hypot(x - old.x, y - old.y) > 0.15 and is_clear(item.edit.target, new, ignoring=old):
            return render(item.edit.target.exchanging(old, new))
    return None


def wrong_object(item: ShapesItem) -> Picture:
    """One shape of another kind."""
    return _altered(item, lambda rng, old: replace(old, kind=pick(rng, KINDS, besides=[old.kind])))


def wrong_size(item: ShapesItem) -> Picture:
    """One shape of another size, where the size is not free."""
    if any(wanted.radius is None for wanted in item.edit.expected.wanted):
        return None
    return _altered(item, lambda rng, old: replace(old, radius=pick_radius(rng, old)))


def pick_radius(rng: np.random.Generator, old: Shape) -> float:
    sizes = [radius for radius in (*RADII.values(), DOT_RADIUS) if abs(radius - old.radius) > 0.01]
    return sizes[int(rng.integers(len(sizes)))]


def extra_object(item: ShapesItem) -> Picture:
    """One shape too many."""
    rng = np.random.default_rng(int(item.id, 16) % 2**32)
    for _ in range(400):
        x, y = (float(value) for value in rng.uniform(0.1, 0.9, size=2))
        shape = Shape(pick(rng, KINDS), pick(rng, COLORS), x, y, RADII[pick(rng, RADII)])
        if is_clear(item.edit.target, shape):
            return render(item.edit.target.adding([shape]))
    return None


def wrong_background(item: ShapesItem) -> Picture:
    """Specks where none belong, and none where they do."""
    background = item.edit.target.background
    pattern = "plain" if background.pattern == "speckle" else "speckle"
    if item.kind == "background pattern":
        return render(replace(item.edit.target, background=replace(background, pattern="plain")))
    return render(replace(item.edit.target, background=other_tint(replace(background, pattern=pattern))))


def other_tint(background: Background) -> Background:
    """A second tint that can be told from the first; plain backgrounds are stored with two equal ones."""
    far = max(TINTS, key=lambda name: math.dist(TINTS[name], TINTS[background.tint]))
    return replace(background, second_tint=far)


def average_of_answers(item: ShapesItem) -> Picture:
    """The mean of two valid answers to an open edit, which is what a model that hedges draws.

    Left out where the mean is itself a valid answer: gradients, and answers so alike that no eye would object.
    """
    if item.kind == "background pattern" and item.edit.expected.pattern == "gradient":
        return None
    other = another_realization(item, seed=5)
    if other is None:
        return None
    first, second = (np.asarray(picture, np.float64) for picture in (item.target, render(other)))
    changed = np.abs(first - second).sum(-1) > 60
    if changed.sum() < 60:
        return None
    return Image.fromarray(((first + second) / 2).round().astype(np.uint8))


WRONG_CLASSES: dict[str, Callable[[ShapesItem], Picture]] = {
    "unedited": unedited,
    "wrong color": wrong_color,
    "wrong place": wrong_place,
    "wrong object": wrong_object,
    "wrong size": wrong_size,
    "extra object": extra_object,
    "wrong background": wrong_background,
    "average of answers": average_of_answers,
}
