"""The world itself: repeatable, disjoint from training, drawn alike by numpy and torch, and said in words."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from kontext_fast.datasets.shapes.dataset import (
    MAX_SHAPES,
    SLOTS,
    draw_caption,
    draw_item,
    held_out,
    held_out_dataset,
)
from kontext_fast.datasets.shapes.edits import EDIT_KINDS, OPEN_KINDS
from kontext_fast.datasets.shapes.language import TEMPLATES
from kontext_fast.datasets.shapes.render import render_arrays, render_float
from kontext_fast.datasets.shapes.scene import PATTERNS, Scene, as_arrays, is_clear, random_scene


def test_held_out_items_are_the_same_in_every_process() -> None:
    code = "from kontext_fast.datasets.shapes import held_out; print([(i.id, i.edit.target) for i in held_out(30)])"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_held_out_items_are_uniform() -> None:
    items = held_out(200)
    assert Counter(item.kind for item in items) == dict.fromkeys(EDIT_KINDS, 20)
    assert Counter(len(item.scene.shapes) for item in items) == dict.fromkeys(range(1, MAX_SHAPES + 1), 50)
    assert Counter(item.scene.background.pattern for item in items) == dict.fromkeys(PATTERNS, 40)
    assert len({item.id for item in items}) == 200


def test_longer_list_extends_a_shorter_one() -> None:
    assert [item.id for item in held_out(12)] == [item.id for item in held_out(40)][:12]


def test_training_scenes_are_never_held_out() -> None:
    rng = np.random.default_rng(0)
    trained = [draw_item(rng, held_out=False, kind=EDIT_KINDS[i % len(EDIT_KINDS)]) for i in range(500)]
    judged = held_out(200)
    assert not any(item.scene.is_held_out() for item in trained)
    assert all(item.scene.is_held_out() for item in judged)
    assert {item.instruction for item in trained}.isdisjoint(item.instruction for item in judged)


def test_no_held_out_wording_is_a_training_wording() -> None:
    """Every template of every kind, filled alike: a held-out sentence may not come out of any training template."""
    words = {
        slot: f"<{slot}>" for slot in ("shape", "place", "size", "kind", "new", "dots", "pattern", "shapes", "ground")
    }
    for color in ("blue", "red"):
        filled = words | {"color": color}
        training = {template.format(**filled) for wordings in TEMPLATES.values() for template in wordings.training}
        for wordings in TEMPLATES.values():
            assert len(wordings.held_out) >= 3
            assert training.isdisjoint(template.format(**filled) for template in wordings.held_out)


def test_held_out_words_are_all_known_from_training() -> None:
    rng = np.random.default_rng(3)
    drawn = [draw_item(rng, held_out=False, kind=EDIT_KINDS[i % 10]).instruction for i in range(3000)]
    known = {word for sentence in drawn for word in sentence.split()}
    judged = {word for item in held_out(400) for word in item.instruction.split()}
    assert judged <= known, judged - known


def test_open_edits_have_more_than_one_answer() -> None:
    rng = np.random.default_rng(1)
    for kind in sorted(OPEN_KINDS):
        targets = {repr(draw_item(np.random.default_rng(i), held_out=False, kind=kind).edit.target) for i in range(20)}
        assert len(targets) == 20
        assert draw_item(rng, held_out=False, kind=kind).open


def test_shapes_never_touch_in_targets() -> None:
    for item in held_out(200, seed=2):
        target = item.edit.target
        for shape in target.shapes:
            assert is_clear(target, shape, ignoring=shape), item.instruction


def test_torch_draws_what_numpy_draws() -> None:
    rng = np.random.default_rng(5)
    scenes = [random_scene(rng, 1 + i % 4, PATTERNS[i % 5]) for i in range(40)]
    arrays = [as_arrays(scene, SLOTS) for scene in scenes]
    shapes, backgrounds = (torch.from_numpy(np.stack(part)) for part in zip(*arrays, strict=True))
    batch = render_arrays(shapes, backgrounds, 64, torch).numpy()
    alone = np.stack([render_float(scene, 64) for scene in scenes])
    assert np.abs(batch - alone).max() < 1e-4


def test_edges_are_anti_aliased() -> None:
    scene = Scene((random_scene(np.random.default_rng(1), 1, "plain").shapes[0],), held_out(1)[0].scene.background)
    assert len(set(render_float(scene, 64).ravel().tolist())) > 10


def test_too_many_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="slots"):
        as_arrays(random_scene(np.random.default_rng(0), 4), 3)


def test_captions_fit_the_text_length() -> None:
    rng = np.random.default_rng(2)
    longest = max(
        len(draw_caption(rng, held_out=held).instruction.replace(",", " ,").split())
        for held in (True, False)
        for _ in range(300)
    )
    assert longest < 48


def test_items_have_captions_and_pictures() -> None:
    items = held_out(72)
    assert any(not item.edit.target.shapes for item in items), "removing the only shape is among them"
    for item in items:
        assert item.image.size == item.target.size == (128, 128)
        assert item.mask is None
        assert item.input_caption
        empty = item.open or not item.edit.target.shapes
        assert (item.output_caption is None) == empty
        assert item.output_caption is None or item.output_caption != item.input_caption


def test_longer_data_set_extends_a_shorter_one() -> None:
    def ids(count: int, seed: int) -> list[str]:
        return [item.id for item in held_out_dataset(count, seed).items]

    assert ids(20, 3) == sorted(ids(20, 3))
    assert set(ids(10, 3)) < set(ids(20, 3))
    assert not set(ids(10, 3)) & set(ids(10, 4))
