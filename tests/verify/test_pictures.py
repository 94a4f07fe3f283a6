"""Repeated pictures, ignored seeds and signed changes, on rendered pictures of the shapes world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from kontext_fast.datasets.shapes import ShapesItem, held_out
from kontext_fast.metrics.scorer import StoredOutput
from kontext_fast.records.schema import Score
from kontext_fast.verify.pictures import (
    DIRECTIONS,
    REPEAT,
    SEED_SPREAD,
    Pixels,
    change_name,
    picture_scores,
    rms,
    signed_changes,
)
from tests.metrics.cases import FreeItem
from tests.verify.synthetic_results import SEEDS, drawn, noisy

Key = tuple[int, int]
"""Index of the item and seed."""
Fault = Callable[[Image.Image], Image.Image]


class Outputs:
    """Outputs of baseline and of a preset that differs from it by rounding."""

    def __init__(self, folder: Path, items: int) -> None:
        self.folder = folder
        self.items: list[ShapesItem] = sorted(held_out(items), key=lambda item: item.id)
        self.stored: dict[Key, StoredOutput] = {}
        self.pictures: dict[Key, Image.Image] = {}
        for index, item in enumerate(self.items):
            for seed in SEEDS:
                baseline = drawn(item, seed)
                reference = folder / f"baseline-{index}-{seed}.png"
                baseline.save(reference)
                self.put((index, seed), noisy(0.6, seed)(item, baseline, index), reference)

    def put(self, key: Key, picture: Image.Image, reference: Path | None = None) -> None:
        """Store `picture` as the output of the preset."""
        index, seed = key
        old = self.stored.get(key)
        file = self.folder / f"preset-{index}-{seed}-{id(picture)}.png"
        picture.save(file)
        self.pictures[key] = picture
        self.stored[key] = StoredOutput(
            item=self.items[index],
            seed=seed,
            image=file.stem,
            file=file,
            reference_file=reference or (old.reference_file if old else None),
        )

    def scores(self, metric: str) -> dict[Key, Score]:
        places = {item.id: index for index, item in enumerate(self.items)}
        scores = picture_scores(list(self.stored.values()))
        return {(places[score.item], score.seed): score for score in scores if score.metric == metric}

    def repeats(self) -> dict[Key, str | None]:
        return {key: score.note for key, score in self.scores(REPEAT).items() if score.value}


@pytest.fixture
def outputs(tmp_path: Path) -> Outputs:
    return Outputs(tmp_path, 8)


def test_no_output_of_an_honest_preset_is_a_repeat(outputs: Outputs) -> None:
    assert len(outputs.scores(REPEAT)) == 16
    assert outputs.repeats() == {}


def test_unedited_input_is_named(outputs: Outputs) -> None:
    changed = [index for index, item in enumerate(outputs.items) if _difference(item.image, item.target) > 8]
    outputs.put((changed[0], 1), outputs.items[changed[0]].image)
    assert outputs.repeats() == {(changed[0], 1): "the input"}


def test_output_of_another_item_is_named(outputs: Outputs) -> None:
    outputs.put((2, 0), outputs.pictures[5, 1])
    # As baseline made it, so that rounding differs.
    outputs.put((3, 1), Image.open(outputs.folder / "baseline-6-0.png"))
    assert outputs.repeats() == {
        (2, 0): f"the output for {outputs.items[5].id}",
        (3, 1): f"the output for {outputs.items[6].id}",
    }


def test_two_outputs_that_are_exchanged_are_both_named(outputs: Outputs) -> None:
    first, second = outputs.pictures[1, 0], outputs.pictures[4, 0]
    outputs.put((1, 0), second)
    outputs.put((4, 0), first)
    assert set(outputs.repeats()) == {(1, 0), (4, 0)}


def test_output_of_one_color_is_named(outputs: Outputs) -> None:
    outputs.put((7, 0), Image.new("RGB", (128, 128), (0, 0, 0)))
    assert outputs.repeats() == {(7, 0): "one color"}


def test_noise_is_named(outputs: Outputs) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    outputs.put((7, 1), Image.fromarray(noise))
    assert outputs.repeats() == {(7, 1): "noise"}


def test_output_for_another_seed_is_named(outputs: Outputs) -> None:
    outputs.put((4, 1), outputs.pictures[4, 0])
    assert outputs.repeats() == {(4, 1): "its own output for seed 0"}


def test_bad_but_own_output_is_no_repeat(outputs: Outputs) -> None:
    outputs.put((4, 1), outputs.pictures[4, 1].filter(ImageFilter.GaussianBlur(3)))
    assert outputs.repeats() == {}


def test_model_that_copies_its_input_is_no_repeat(tmp_path: Path) -> None:
    """The preset leaves out an edit, as a lossy one may, and its output is as close to the input as any of baseline."""
    outputs = Outputs(tmp_path, 6)
    noise = np.random.default_rng(3).normal(0, 1.4, (128, 128, 3))
    for index, item in enumerate(outputs.items):
        copied = Image.fromarray(np.clip(np.asarray(item.image, float) + noise, 0, 255).round().astype(np.uint8))
        if index < 5:
            copied.save(outputs.folder / f"baseline-{index}-0.png")
        outputs.put((index, 0), copied)
    assert outputs.repeats() == {}
    outputs.put((5, 0), outputs.items[5].image)
    assert outputs.repeats() == {(5, 0): "the input"}


def test_seed_spread_shows_whether_seeds_are_followed(outputs: Outputs) -> None:
    spreads = [score.value for score in outputs.scores(SEED_SPREAD).values()]
    assert len(spreads) == 8
    assert spreads == pytest.approx([1.0] * 8, abs=0.05)
    for index, item in enumerate(outputs.items):
        outputs.put((index, 1), noisy(0.6, 99)(item, outputs.pictures[index, 0], index))
    assert all(float(score.value or 0) < 0.2 for score in outputs.scores(SEED_SPREAD).values())


def test_output_of_another_size_has_no_scores(outputs: Outputs) -> None:
    outputs.put((0, 0), outputs.pictures[0, 0].resize((64, 64)))
    assert (0, 0) not in outputs.scores(REPEAT)
    assert len(outputs.scores(REPEAT)) == 15
    assert picture_scores([replace(output, reference_file=None) for output in outputs.stored.values()]) == []


def test_directions_have_the_sign_of_the_change() -> None:
    picture = drawn(held_out(1)[0], 0)
    before = np.asarray(picture, np.float32)

    def change(fault: Fault, direction: str) -> float:
        return signed_changes(np.asarray(fault(picture), np.float32), before)[direction]

    assert change(lambda image: ImageEnhance.Brightness(image).enhance(1.02), "luminance") > 1
    assert change(lambda image: ImageEnhance.Contrast(image).enhance(0.95), "contrast") < -0.2
    assert change(lambda image: ImageEnhance.Color(image).enhance(0.9), "chroma") < -1
    assert change(lambda image: image.filter(ImageFilter.GaussianBlur(1)), "sharpness") < -1
    assert signed_changes(before, before) == dict.fromkeys(DIRECTIONS, 0.0)


def test_changes_of_a_small_picture_are_exact() -> None:
    before = np.zeros((3, 3, 3), np.float32)
    after = before.copy()
    after[0, :2] = (10, 20, 30), (40, 40, 40)
    changes = signed_changes(after, before)
    luminance = [18.15, 40.0, *[0.0] * 7]
    expected = {
        "luminance": 58.15 / 9,
        "contrast": float(np.std(luminance)),
        "chroma": 20 / 9,
        # Down and to the right, of six steps each.
        "sharpness": (58.15 / 6 + (21.85 + 40) / 6) / 2,
        "top left": 18.15,
        "top": 40.0,
    }
    assert changes == pytest.approx(dict.fromkeys(DIRECTIONS, 0.0) | expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("corner", "region"), [((0, 0), "top left"), ((60, 60), "middle"), ((120, 60), "right"), ((0, 120), "bottom left")]
)
def test_mark_changes_its_region_alone(corner: tuple[int, int], region: str) -> None:
    before = np.full((128, 128, 3), 100, np.float32)
    after = before.copy()
    left, top = corner
    after[top : top + 8, left : left + 8] = 200
    changes = signed_changes(after, before)
    regions = DIRECTIONS[4:]
    assert [name for name in regions if changes[name] != 0] == [region]
    assert changes[region] == pytest.approx(100 * 64 / (128 / 3) ** 2, rel=0.05)


def test_names_of_changes_are_distinct() -> None:
    assert len({change_name(direction) for direction in DIRECTIONS}) == 13


RED = np.array([1, 0, 0], np.float32)


def _flat(level: float, share: float = 1.0, more: float = 0.0) -> Pixels:
    """One gray, with `more` of it in a share of the rows."""
    picture = np.full((32, 32, 3), level, np.float32)
    picture[: round(32 * share)] += more
    return picture


def _checkers(level: float, height: float) -> Pixels:
    """Every step between neighbors is `height`."""
    odd = np.indices((32, 32)).sum(0) % 2
    return np.repeat((level + height * odd)[:, :, None], 3, axis=2).astype(np.float32)


def _repeats(folder: Path, *edits: tuple[str, int, Pixels, Pixels, Pixels]) -> dict[tuple[str, int], str | None]:
    """What is said of outputs, each given as item, seed, input, reference and output."""

    # Names of stored images are hashes of what is in them: one name never has two pictures.
    own = Path(mkdtemp(dir=folder))

    def saved(name: str, pixels: Pixels) -> Path:
        _picture(pixels).save(own / name)
        return own / name

    stored = [
        StoredOutput(
            item=FreeItem(id=item, image=_picture(source)),
            seed=seed,
            image=f"{item}-{seed}",
            file=saved(f"{item}-{seed}.png", output),
            reference_file=saved(f"{item}-{seed}-reference.png", reference),
        )
        for item, seed, source, reference, output in edits
    ]
    return {
        (score.item, score.seed): score.note
        for score in picture_scores(stored)
        if score.metric == REPEAT and score.value
    }


def _picture(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize(
    ("source", "reference", "output", "note"),
    [
        # Its input, and as far from its reference as that counts, or not yet.
        (_flat(100), _flat(104), _flat(100), None),
        (_flat(100), _flat(105), _flat(100), "the input"),
        # Nearly its input: by less than two levels, and by less than half of what baseline comes near its own.
        (_flat(100), _flat(180), _flat(100, 0.75, 2), "the input"),
        (_flat(100), _flat(180), _flat(100, 1.0, 2), None),
        # Four times as far from its reference as from its input, or less.
        (_flat(100), _flat(107), _flat(100, 0.75, 2), None),
        (_flat(100), _flat(109), _flat(100, 0.75, 2), "the input"),
        # One color, where the reference has more than one.
        (_flat(10), _flat(100, 0.5, 60), _flat(200), "one color"),
        (_flat(10), _flat(100, 0.5, 60), _flat(200, 0.5, 2), None),
        (_flat(10), _flat(100, 0.5, 8), _flat(200), None),
        (_flat(10), _flat(100, 0.5, 10), _flat(200), "one color"),
        (_flat(10), _flat(100, 0.5, 60), _flat(200) * RED, "one color"),
        (_flat(10), _flat(100) * RED, _flat(200), None),
        # Twice as sharp as the sharpest of reference and input, and as two levels.
        (_flat(10), _flat(100), _checkers(200, 3), None),
        (_flat(10), _flat(100), _checkers(200, 5), "noise"),
        (_checkers(10, 10), _flat(100), _checkers(200, 18), None),
        (_checkers(10, 10), _flat(100), _checkers(200, 22), "noise"),
        (_flat(10), _checkers(100, 10), _checkers(200, 18), None),
        (_flat(10), _checkers(100, 10), _checkers(200, 22), "noise"),
    ],
)
def test_single_output_is_a_repeat_beyond_each_limit(
    source: Pixels, reference: Pixels, output: Pixels, note: str | None, tmp_path: Path
) -> None:
    assert _repeats(tmp_path, ("one", 0, source, reference, output)) == ({("one", 0): note} if note else {})


def test_near_an_input_means_half_of_the_nearest_reference(tmp_path: Path) -> None:
    """Baseline comes within 3 levels of the input of one item, so that 1.5 are near for the other."""
    honest = ("honest", 0, _flat(10), _flat(13), _flat(13))
    assert _repeats(tmp_path, honest, ("other", 0, _flat(100), _flat(180), _flat(101))) == {("other", 0): "the input"}
    assert _repeats(tmp_path, honest, ("other", 0, _flat(100), _flat(180), _flat(100, 0.75, 2))) == {}


def test_near_another_output_means_half_of_the_nearest_references(tmp_path: Path) -> None:
    """References of two items are 4 levels apart, of which a thumbnail shows 3, so that 1.5 are near."""
    honest = [(f"honest {level}", 0, _flat(10), _flat(level), _flat(level)) for level in (180, 184)]
    near, farther = (("last", 0, _flat(10), _flat(60), output) for output in (_flat(181), _flat(180, 0.75, 2)))
    assert _repeats(tmp_path, *honest, near) == {("last", 0): "the output for honest 180"}
    assert _repeats(tmp_path, *honest, farther) == {}
    # Far from all others, two levels are near.
    assert _repeats(tmp_path, honest[0], farther) == {("last", 0): "the output for honest 180"}


def test_baseline_of_another_item_is_named_too(tmp_path: Path) -> None:
    """The other item's own output is an edit of another size, and neither picture of its own item counts."""
    large = np.full((64, 64, 3), 60, np.float32)
    edits = [
        ("large", 0, large, large, large),
        ("second", 0, _flat(10), _flat(180), _flat(220)),
        ("third", 0, _flat(10), _flat(60), _flat(60)),
        ("third", 1, _flat(10), _flat(120), _flat(180)),
        ("fourth", 0, _flat(10), _flat(90), _flat(60)),
    ]
    assert _repeats(tmp_path, *edits) == {
        ("third", 1): "the output for second",
        ("fourth", 0): "the output for third",
    }


def test_baseline_of_another_seed_is_no_output_of_its_own(tmp_path: Path) -> None:
    first = ("one", 0, _flat(10), _flat(60), _flat(120))
    assert _repeats(tmp_path, first, ("one", 1, _flat(10), _flat(120), _flat(90))) == {}


def test_seeds_of_two_sizes_have_no_spread(tmp_path: Path) -> None:
    large, small = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (32, 32), "blue")
    stored = []
    for seed, picture in enumerate((large, small)):
        picture.save(tmp_path / f"{seed}.png")
        file = tmp_path / f"{seed}.png"
        stored.append(StoredOutput(item=FreeItem(image=large), seed=seed, image="", file=file, reference_file=file))
    metrics = [score.metric for score in picture_scores(stored)]
    assert SEED_SPREAD not in metrics
    assert metrics.count(REPEAT) == 2
    assert rms(_flat(1), np.ones((16, 32, 3), np.float32)) == float("inf")


def test_changes_are_scores_of_their_own_names(outputs: Outputs) -> None:
    outputs.put((2, 1), ImageEnhance.Brightness(Image.open(outputs.folder / "baseline-2-1.png")).enhance(0.9))
    for direction in DIRECTIONS:
        assert len(outputs.scores(change_name(direction))) == 16
    score = outputs.scores(change_name("luminance"))[2, 1]
    assert isinstance(score.value, float)
    assert score.value < -3
    assert (score.image, score.note) == (outputs.stored[2, 1].image, None)


def test_same_output_for_two_seeds_counts_if_baseline_differs(tmp_path: Path) -> None:
    def outputs(second_reference: float) -> dict[tuple[str, int], str | None]:
        first = ("one", 0, _flat(10), _flat(60), _flat(200))
        return _repeats(tmp_path, first, ("one", 1, _flat(10), _flat(second_reference), _flat(200)))

    assert outputs(65) == {("one", 0): "its own output for seed 1", ("one", 1): "its own output for seed 0"}
    assert outputs(64) == {}


def _difference(first: Image.Image, second: Image.Image) -> float:
    return float(np.sqrt(np.mean((np.asarray(first, float) - np.asarray(second, float)) ** 2)))
