"""What the pixels of an arm say beside the metrics: signed changes in fixed directions, outputs that repeat another
picture, and whether outputs follow their seeds.

All of it is stored as scores, one per output, so that the verdict is computed from records alone. Values are in levels
of 0 to 255.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from kontext_fast.metrics.scorer import StoredOutput
from kontext_fast.records.schema import Score
from kontext_fast.records.store import read_stored_image

Pixels = npt.NDArray[np.float32]
"""(height, width, 3) in 0..255."""

REPEAT: Final = "repeat"
"""True for an output that is another picture; the note says which."""
SEED_SPREAD: Final = "seed_spread"
"""How far an output is from that of the item's first seed, over the same distance of the reference."""
REGIONS: Final = tuple(
    " ".join(word for word in words if word) or "middle"
    for words in product(("top", "", "bottom"), ("left", "", "right"))
)
DIRECTIONS: Final = ("luminance", "contrast", "chroma", "sharpness", *REGIONS)
"""Signed changes: of the whole picture, and of the luminance of nine regions."""

SAME = 2.0
"""Root mean square of a difference that rounding may make, at most."""
FAR_FACTOR = 4.0
"""An output that repeats a picture is so many times farther from its own reference."""
NOISE_FACTOR = 2.0
"""Noise is so many times as sharp as the sharpest picture of baseline or of the inputs."""
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
_THUMB = 16


def change_name(direction: str) -> str:
    """The name of the score of a direction."""
    return f"change of {direction}"


def picture_scores(outputs: Sequence[StoredOutput]) -> list[Score]:
    """Scores of the outputs of one arm that have a reference of the same size; all items of the arm belong here.

    Raises InvalidInput or OSError where an image is missing.
    """
    pairs = [
        _Pair(output, output.reference_file)
        for output in outputs
        if output.reference_file is not None and _size(output.file) == _size(output.reference_file)
    ]
    repeats = _find_repeats(pairs)
    scores = []
    for pair in pairs:
        of_pair: list[tuple[str, float | bool, str | None]] = [
            (change_name(direction), change, None)
            for direction, change in signed_changes(pair.pixels, pair.reference).items()
        ]
        what = repeats.get(pair.key)
        of_pair.append((REPEAT, what is not None, what))
        scores += [pair.output.score(*values) for values in of_pair]
    scores += [pair.output.score(SEED_SPREAD, spread) for pair, spread in _seed_spreads(pairs)]
    return scores


def signed_changes(output: Pixels, reference: Pixels) -> dict[str, float]:
    """Output minus reference in each of `DIRECTIONS`; both have the same shape, at least 3 by 3."""
    after, before = (pixels @ _LUMINANCE for pixels in (output, reference))
    values = {
        "luminance": float(after.mean() - before.mean()),
        "contrast": float(after.std() - before.std()),
        "chroma": _chroma(output) - _chroma(reference),
        "sharpness": _sharpness(after) - _sharpness(before),
    }
    difference = after - before
    rows = np.array_split(difference, 3, axis=0)
    cells = [cell for row in rows for cell in np.array_split(row, 3, axis=1)]
    return values | {region: float(cell.mean()) for region, cell in zip(REGIONS, cells, strict=True)}


def _chroma(pixels: Pixels) -> float:
    """The mean distance of a color from gray."""
    return float((pixels.max(-1) - pixels.min(-1)).mean())


def _sharpness(luminance: npt.NDArray[np.float32]) -> float:
    """The mean step between neighbors."""
    return float(np.abs(np.diff(luminance, axis=0)).mean() + np.abs(np.diff(luminance, axis=1)).mean()) / 2


@dataclass(frozen=True)
class _Pair:
    """An output with its reference: baseline's for the same item and seed."""

    output: StoredOutput
    reference_file: Path

    @property
    def key(self) -> tuple[str, int]:
        return self.output.item.id, self.output.seed

    @property
    def pixels(self) -> Pixels:
        return _read(self.output.file)

    @property
    def reference(self) -> Pixels:
        return _read(self.reference_file)

    def input(self) -> Pixels:
        height, width = self.reference.shape[:2]
        return _array(self.output.item.image.resize((width, height)))


def _find_repeats(pairs: Sequence[_Pair]) -> dict[tuple[str, int], str]:
    """What an output is instead of its edit, by item and seed: its input, an output of another item, one color, noise,
    or the output for another seed.

    An output counts only if it is far from its own reference, and closer to what it repeats than references are to
    theirs: a model may copy most of its input, and two items may have nearly the same picture.
    """
    if not pairs:
        return {}
    near_input = min(SAME, min(rms(pair.reference, pair.input()) for pair in pairs) / 2)
    others = _Others(pairs)
    sharpest = max(_sharpness(pixels @ _LUMINANCE) for pair in pairs for pixels in (pair.reference, pair.input()))
    repeats: dict[tuple[str, int], str] = {}
    for pair in pairs:
        away = rms(pair.pixels, pair.reference)
        if away <= FAR_FACTOR:
            continue
        if pair.pixels.std(axis=(0, 1)).max() < 1 and pair.reference.std(axis=(0, 1)).max() > FAR_FACTOR:
            repeats[pair.key] = "one color"
        elif _sharpness(pair.pixels @ _LUMINANCE) > NOISE_FACTOR * max(sharpest, SAME):
            repeats[pair.key] = "noise"
        elif _is_near(distance := rms(pair.pixels, pair.input()), near_input) and away > FAR_FACTOR * distance:
            repeats[pair.key] = "the input"
        elif (other := others.repeated_by(pair, away)) is not None:
            repeats[pair.key] = other
    return repeats


class _Others:
    """Outputs and references of all items, compared by thumbnails first.

    A thumbnail has the means of equal areas, so that two pictures are never closer than their thumbnails.
    """

    def __init__(self, pairs: Sequence[_Pair]) -> None:
        self._pairs = pairs
        self._items = np.array([pair.output.item.id for pair in pairs])
        self._thumbs = np.stack([_thumb(pair.output.file) for pair in pairs])
        self._reference_thumbs = np.stack([_thumb(pair.reference_file) for pair in pairs])
        self._near = min(SAME, self._least_distance() / 2)

    def _least_distance(self) -> float:
        """Of references of two items."""
        least = np.inf
        for index in range(len(self._pairs)):
            elsewhere = self._items != self._items[index]
            if elsewhere.any():
                distances = _thumb_distances(self._reference_thumbs[index], self._reference_thumbs[elsewhere])
                least = min(least, float(distances.min()))
        return least

    def repeated_by(self, pair: _Pair, away: float) -> str | None:
        """Which picture `pair` repeats, `away` from its own reference."""
        thumb = _thumb(pair.output.file)
        for thumbs, is_reference in ((self._thumbs, False), (self._reference_thumbs, True)):
            for index in np.flatnonzero(_thumb_distances(thumb, thumbs) <= self._near).tolist():
                other = self._pairs[index]
                same_item = other.output.item.id == pair.output.item.id
                if other.key == pair.key or (same_item and is_reference):
                    continue
                pixels = other.reference if is_reference else other.pixels
                if pixels.shape != pair.pixels.shape:
                    continue
                distance = rms(pair.pixels, pixels)
                if same_item:
                    # Two seeds of an edit with one answer are close, but never the same.
                    if distance == 0 and rms(pair.reference, other.reference) > FAR_FACTOR:
                        return f"its own output for seed {other.output.seed}"
                elif _is_near(distance, self._near) and away > FAR_FACTOR * distance:
                    return f"the output for {other.output.item.id}"
        return None


def _seed_spreads(pairs: Sequence[_Pair]) -> Iterator[tuple[_Pair, float]]:
    """Of every output but that of the item's first seed; none where the reference hardly differs between seeds."""
    first: dict[str, _Pair] = {}
    for pair in sorted(pairs, key=lambda pair: pair.key):
        other = first.setdefault(pair.output.item.id, pair)
        if other is pair or other.pixels.shape != pair.pixels.shape:
            continue
        expected = rms(pair.reference, other.reference)
        if expected > SAME:
            yield pair, rms(pair.pixels, other.pixels) / expected


def rms(first: Pixels, second: Pixels) -> float:
    """Root mean square difference of two pictures; infinite where their sizes differ."""
    if first.shape != second.shape:
        return float("inf")
    return float(np.sqrt(np.mean((first - second) ** 2, dtype=np.float64)))


def _is_near(distance: float, limit: float) -> bool:
    return distance == 0 or distance < limit


def _array(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB"), np.float32)


@lru_cache(maxsize=8)
def _read(file: Path) -> Pixels:
    return _array(read_stored_image(file))


@lru_cache(maxsize=4096)
def _size(file: Path) -> tuple[int, int]:
    with Image.open(file, formats=("PNG",)) as image:
        return image.size


@lru_cache(maxsize=4096)
def _thumb(file: Path) -> Pixels:
    image = read_stored_image(file).convert("RGB")
    return _array(image.resize((_THUMB, _THUMB), Image.Resampling.BOX))


def _thumb_distances(thumb: Pixels, thumbs: Pixels) -> npt.NDArray[np.float64]:
    """Less than the distances of the whole pictures, by what rounding adds."""
    distances = np.sqrt(((thumbs - thumb) ** 2).mean((1, 2, 3), dtype=np.float64))
    return np.asarray(np.maximum(0.0, distances - 1.0), np.float64)
