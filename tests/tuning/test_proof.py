"""Verdicts of distances, which can fail and can be undecided."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from kontext_fast.datasets.base import Dataset
from kontext_fast.datasets.shapes.dataset import held_out
from kontext_fast.errors import GateFailed
from kontext_fast.tuning.parts import shapes_parts, split
from kontext_fast.tuning.proof import Verdict, ratio, verdict

PLAIN = np.exp(np.random.default_rng(0).normal(-3, 0.5, 50))
NOISE = np.exp(np.random.default_rng(1).normal(0, 0.1, 50))


def test_nearer_passes_farther_fails_and_alike_is_undecided() -> None:
    assert verdict(0.5 * PLAIN * NOISE, PLAIN, None) is Verdict.PASSES
    assert verdict(1.5 * PLAIN * NOISE, PLAIN, None) is Verdict.FAILS
    alike = PLAIN * np.where(np.arange(50) % 2, 0.9, 1.1)
    assert verdict(alike * PLAIN.mean() / alike.mean() * 0.999, PLAIN, None) is Verdict.CANNOT_TELL


def test_a_reference_less_exact_than_the_claim_is_undecided() -> None:
    near = 0.5 * PLAIN * NOISE
    assert verdict(near, PLAIN, 0.3 * near) is Verdict.PASSES
    assert verdict(near, PLAIN, 0.4 * near) is Verdict.CANNOT_TELL


def test_ratios_are_paired_by_item() -> None:
    estimate = ratio(0.5 * PLAIN, PLAIN)
    assert estimate.value == pytest.approx(0.5)
    assert estimate.interval == pytest.approx((0.5, 0.5))


def test_parts_share_no_item_and_no_seed() -> None:
    parts = shapes_parts(items=20, held_out=10)
    assert [len(part) for part in (parts.fit, parts.choose, parts.held_out)] == [16, 4, 10]
    ids = [item.id for part in vars(parts).values() for item in part.items]
    seeds = [seed for part in vars(parts).values() for seed in part.seeds]
    assert len(set(ids)) == len(set(seeds)) == 30


def test_too_few_items_cannot_tell() -> None:
    with pytest.raises(GateFailed, match="Cannot tell"):
        shapes_parts(items=4, held_out=100)
    with pytest.raises(GateFailed, match="12 usable items"):
        split(Dataset("mine", held_out(12)), items=10, held_out=8)


def test_what_shares_an_image_is_in_one_part() -> None:
    items = [
        dataclasses.replace(item, instruction=text) for item in held_out(24) for text in ("make it red", "blur it")
    ]
    parts = split(Dataset("mine", items), items=12, held_out=8)
    pictures = [item.image.tobytes() for part in vars(parts).values() for item in part.items]
    assert len(set(pictures)) == len(pictures) == 20


def test_fewer_items_than_asked_for_keep_the_proportion() -> None:
    parts = split(Dataset("mine", held_out(40)), items=64, held_out=64)
    assert [len(part) for part in (parts.fit, parts.choose, parts.held_out)] == [16, 4, 20]
