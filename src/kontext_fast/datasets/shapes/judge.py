"""Decides whether an edit was done and whether everything else was kept, from the output image alone.

The judge compares the detected shapes and background with what the edit asks for, not with the target image, so that
every valid realization of an open edit is right. Its error rates are tested on right and wrong images of many kinds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from kontext_fast.datasets.shapes.dataset import NATIVE_SIZE, CaptionItem, ShapesItem
from kontext_fast.datasets.shapes.detection import (
    DetectedBackground,
    DetectedShape,
    detect_background,
    detect_shapes,
    near_edges,
    near_shapes,
)
from kontext_fast.datasets.shapes.edits import Expectation, Wanted
from kontext_fast.datasets.shapes.render import render
from kontext_fast.datasets.shapes.scene import PLACES, RADII, TINTS, Background, Scene, Shape

KEPT_DISTANCE = 0.035
"""How far a shape that stays may be from where it was, as a share of the width."""
PLACED_DISTANCE = 0.055
"""The same for a shape that the edit puts at a place."""
CAPTION_DISTANCE = 0.14
"""The same for a place that a caption names: shapes stand near named places, not on them."""
RADIUS_RATIO = 1.2
STRAY_ERROR = 26.0
"""Local mean error, of 255, from which a pixel is not explained by the detected shapes and background."""
STRAY_AREA = 60
"""Unexplained pixels that are too many, at 128 x 128."""
BACKGROUND_ERROR = 9.0
"""Largest mean error over a background that is known exactly."""
PATTERN_STRENGTH = 0.6
"""Least share of the expected pattern's contrast."""
SPECK_CONTRAST = 14.0
"""Largest deviation from its mean, of 255, that a plain background may have in all but 3 % of its pixels."""
TINT_DISTANCE = 30.0
PURE_TINT_DISTANCE = 15.0
"""How far a tint of an open pattern may be from the nearest of the world's; mixtures of two patterns are farther."""


@dataclass(frozen=True)
class Judgement:
    """`done`: the edit is there. `kept`: nothing else changed. `reasons` says what is wrong and is empty otherwise."""

    done: bool
    kept: bool
    reasons: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        return self.done and self.kept


def judge(image: Image.Image, item: ShapesItem) -> Judgement:
    """Judges the output `image` of `item`; an image of another size is scaled to 128 x 128 first."""
    return _judge(image, item.edit.expected, changed=set(item.scene.shapes) - set(item.edit.expected.kept))


def judge_caption(image: Image.Image, item: CaptionItem) -> Judgement:
    """Judges an image made from a caption: every shape named, near its named place, on the named background."""
    wanted = tuple(
        Wanted(shape.kind, frozenset({shape.color}), PLACES[shape.place], RADII[shape.size])
        for shape in item.scene.shapes
    )
    background = item.scene.background
    plain = background.pattern == "plain"
    expected = Expectation((), wanted, background if plain else None, None if plain else background.pattern)
    verdict = _judge(image, expected, changed=set(), place_distance=CAPTION_DISTANCE)
    if not plain and not _has_tints(image, background):
        return Judgement(False, verdict.kept, (*verdict.reasons, "the background has other colors"))
    return verdict


def _judge(
    image: Image.Image, expected: Expectation, changed: set[Shape], place_distance: float = PLACED_DISTANCE
) -> Judgement:
    pixels = _pixels(image)
    left_over = detect_shapes(pixels)
    shapes = list(left_over)
    not_kept = [
        f"the {shape.color} {shape.kind} is not as it was"
        for shape in expected.kept
        if not _take(left_over, _as_wanted(shape), KEPT_DISTANCE)
    ]
    not_done = [
        f"{_describe(wanted)} is missing"
        for wanted in _placed_first(expected.wanted)
        if not _take(left_over, wanted, place_distance)
    ]
    for seen in left_over:
        if any(_matches(seen, _as_wanted(shape), KEPT_DISTANCE) for shape in changed):
            not_done.append(f"the {seen.color} {seen.kind} is still there")
        else:
            not_kept.append(f"there is an extra {seen.color} {seen.kind or 'blot'}")
    if expected.background is None:
        not_done += _pattern_faults(pixels, shapes, expected.pattern)
    else:
        is_edit = not expected.wanted and not changed
        (not_done if is_edit else not_kept).extend(_background_faults(pixels, shapes, expected.background))
    return Judgement(not not_done, not not_kept, (*not_done, *not_kept))


def _pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    image = image.convert("RGB")
    if image.size != (NATIVE_SIZE, NATIVE_SIZE):
        image = image.resize((NATIVE_SIZE, NATIVE_SIZE), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _as_wanted(shape: Shape) -> Wanted:
    return Wanted(shape.kind, frozenset({shape.color}), (shape.x, shape.y), shape.radius)


def _placed_first(wanted: Iterable[Wanted]) -> list[Wanted]:
    """The most specific first, so that a shape that may be anywhere does not take another's match."""
    return sorted(wanted, key=lambda shape: (shape.place is None, shape.radius is None, len(shape.colors)))


def _take(seen: list[DetectedShape], wanted: Wanted, place_distance: float) -> bool:
    """Removes the first shape that matches `wanted`; False where there is none."""
    for shape in seen:
        if _matches(shape, wanted, place_distance):
            seen.remove(shape)
            return True
    return False


def _matches(seen: DetectedShape, wanted: Wanted, place_distance: float) -> bool:
    if seen.kind != wanted.kind or seen.color not in wanted.colors:
        return False
    if wanted.radius is not None and not 1 / RADIUS_RATIO < seen.radius / wanted.radius < RADIUS_RATIO:
        return False
    if wanted.radius is None and seen.radius < min(RADII.values()) / RADIUS_RATIO:
        return False
    return wanted.place is None or float(np.hypot(seen.x - wanted.place[0], seen.y - wanted.place[1])) < place_distance


def _describe(wanted: Wanted) -> str:
    color = f"{next(iter(wanted.colors))} " if len(wanted.colors) == 1 else ""
    return f"a {color}{wanted.kind}" + (" at its place" if wanted.place else "")


def _background_faults(pixels: npt.NDArray[np.uint8], shapes: list[DetectedShape], background: Background) -> list[str]:
    """Compares the image with a rendering of the detected shapes on the expected background."""
    drawn = np.asarray(render(Scene(tuple(shape.as_shape() for shape in shapes), background), NATIVE_SIZE), np.float64)
    error = np.abs(pixels - drawn).mean(-1)
    ground = ~near_shapes(shapes, NATIVE_SIZE, 3.0)
    faults = []
    if error[ground].mean() > BACKGROUND_ERROR or not _shows(pixels[ground], drawn[ground]):
        faults.append(f"the background is not the {background.pattern} one that is due")
    stray = (ndimage.uniform_filter(error, 5) > STRAY_ERROR) & ~near_edges(shapes, NATIVE_SIZE, 3.0)
    if stray.sum() > STRAY_AREA:
        faults.append("there are smudges")
    return faults


def _shows(ground: npt.NDArray[np.uint8], due: npt.NDArray[np.float64]) -> bool:
    """Whether the expected pattern is there in full strength, and no other; specks are too few to shift a mean."""
    pattern, seen = due - due.mean(0), ground - ground.mean(0)
    if pattern.std() < 1:
        return float(np.percentile(np.abs(seen).mean(-1), 97)) < SPECK_CONTRAST
    return float((pattern * seen).sum() / (pattern * pattern).sum()) > PATTERN_STRENGTH


def _pattern_faults(pixels: npt.NDArray[np.uint8], shapes: list[DetectedShape], pattern: str | None) -> list[str]:
    covered = near_shapes(shapes, NATIVE_SIZE, 3.0)
    seen = detect_background(pixels, covered)
    faults = (
        [] if seen.pattern == pattern else [f"the background shows {seen.pattern or 'no clear pattern'}, not {pattern}"]
    )
    if pattern in ("stripes", "checks", "speckle") and not all(_is_tint(tint) for tint in _exact_tints(seen)):
        faults.append("the background has colors of two patterns at once")
    stray = (ndimage.uniform_filter(seen.off_axis, 5) > STRAY_ERROR) & ~covered
    if stray.sum() > STRAY_AREA:
        faults.append("there are smudges")
    return faults


def _exact_tints(seen: DetectedBackground) -> tuple[npt.NDArray[np.float64], ...]:
    """The tints that can be read exactly; specks are too small for that."""
    return (seen.main_tint,) if seen.pattern == "speckle" else seen.tints


def _is_tint(color: npt.NDArray[np.float64]) -> bool:
    return min(float(np.linalg.norm(color - np.asarray(tint))) for tint in TINTS.values()) < PURE_TINT_DISTANCE


def _has_tints(image: Image.Image, background: Background) -> bool:
    pixels = _pixels(image)
    seen = detect_background(pixels, near_shapes(detect_shapes(pixels), NATIVE_SIZE, 3.0))
    due = [np.asarray(TINTS[name], np.float64) for name in (background.tint, background.second_tint)]
    # The two means of a gradient lie a quarter of the way in from its ends.
    reach = 4 * TINT_DISTANCE if background.pattern == "gradient" else 2 * TINT_DISTANCE
    return any(
        sum(float(np.linalg.norm(a - b)) for a, b in zip(seen.tints, order, strict=True)) < reach
        for order in (due, due[::-1])
    )
