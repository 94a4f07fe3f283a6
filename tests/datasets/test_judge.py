"""The judge's own error rates: right pictures it must accept, wrong ones it must reject, class by class."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from kontext_fast.datasets.shapes.dataset import ShapesItem, held_out, held_out_captions
from kontext_fast.datasets.shapes.judge import judge, judge_caption
from kontext_fast.datasets.shapes.render import render
from tests.datasets.negative_examples import WRONG_CLASSES, another_realization

ITEMS, VAE_ITEMS = 160, 60
RIGHT_ACCEPTED = 0.99
WRONG_REJECTED = 0.98
MIXED = frozenset({"recolor freely"})
"""Kinds of edits of which the average of two answers differs from an answer in a color alone."""


@pytest.fixture(scope="module")
def items() -> list[ShapesItem]:
    return held_out(ITEMS, seed=3)


@pytest.fixture(scope="module")
def round_trip(tiny_vae: torch.nn.Module) -> Callable[[Image.Image], Image.Image]:
    """A picture encoded and decoded by the autoencoder of `tiny`."""

    @torch.no_grad()
    def through(picture: Image.Image) -> Image.Image:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
        decoded = tiny_vae.decode(tiny_vae.encode(pixels).latent_dist.mode()).sample[0]  # type: ignore[operator]
        return Image.fromarray(((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())

    return through


def test_accepts_targets(items: list[ShapesItem]) -> None:
    assert all(judge(item.target, item).accepted for item in items)


@pytest.mark.slow
def test_accepts_targets_after_a_vae_round_trip(
    items: list[ShapesItem], round_trip: Callable[[Image.Image], Image.Image]
) -> None:
    faults = {
        item.id: verdict.reasons for item in items if not (verdict := judge(round_trip(item.target), item)).accepted
    }
    assert len(faults) <= (1 - RIGHT_ACCEPTED) * len(items), faults


def test_accepts_other_realizations_after_a_vae_round_trip(
    items: list[ShapesItem], round_trip: Callable[[Image.Image], Image.Image]
) -> None:
    others = [(item, scene) for item in items if (scene := another_realization(item, seed=9)) is not None]
    faults = [
        (item.instruction, verdict.reasons)
        for item, scene in others
        if not (verdict := judge(round_trip(render(scene)), item)).accepted
    ]
    assert len(others) >= 60
    assert len(faults) <= (1 - RIGHT_ACCEPTED) * len(others), faults


@pytest.mark.parametrize("name", WRONG_CLASSES)
@pytest.mark.parametrize(
    "through_vae", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["drawn", "through the VAE"]
)
def test_rejects_negative_examples(
    items: list[ShapesItem],
    name: str,
    through_vae: bool,
    round_trip: Callable[[Image.Image], Image.Image],
) -> None:
    judged = items[:VAE_ITEMS] if through_vae else items
    wrong = [(item, picture) for item in judged if (picture := WRONG_CLASSES[name](item)) is not None]
    if through_vae:
        # An autoencoder that knows nine colors turns a mixture of two into one of them, which is a right answer again.
        mixes_colors = name == "average of answers"
        wrong = [(item, round_trip(picture)) for item, picture in wrong if not mixes_colors or item.kind not in MIXED]
    missed = [item.instruction for item, picture in wrong if judge(picture, item).accepted]
    assert len(wrong) >= len(judged) // 4
    assert len(missed) <= (1 - WRONG_REJECTED) * len(wrong), missed


def test_says_which_half_failed(items: list[ShapesItem]) -> None:
    """An unedited input is kept but not done; a target with an extra shape is done but not kept."""
    for item in items[:40]:
        untouched = judge(item.image, item)
        assert not untouched.done
        assert untouched.kept, (item.instruction, untouched.reasons)
        picture = WRONG_CLASSES["extra object"](item)
        assert picture is not None
        assert judge(picture, item).done or item.kind in ("add", "scatter")


def test_every_rejection_has_a_reason(items: list[ShapesItem]) -> None:
    for item in items[:40]:
        verdict = judge(item.image, item)
        assert bool(verdict.reasons) != verdict.accepted


def test_judges_captions() -> None:
    items = held_out_captions(60, seed=4)
    assert all(judge_caption(render(item.scene), item).accepted for item in items)
    shuffled = [judge_caption(render(other.scene), item).accepted for item, other in pairwise(items)]
    assert not any(shuffled)


def test_larger_images_are_judged_alike(items: list[ShapesItem]) -> None:
    for item in items[:20]:
        assert judge(render(item.edit.target, 256), item).accepted
        assert not judge(render(item.scene, 256), item).accepted
