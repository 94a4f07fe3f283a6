"""The rules of the first-block cache without a pipeline: what it compares, decides, remembers and says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.techniques.first_block_cache import (
    FirstBlockCache,
    Remembered,
    _advance,
    _change,
    _decide,
    _joined,
    _require_supported,
)

FIXED = "first_block_cache on a fixed schedule: "


@pytest.mark.parametrize("computing", [[True, False, True], [False, True, False], [True, True, True], [False] * 3])
def test_samples_keep_separate_residuals(computing: list[bool]) -> None:
    """Blocks that multiply by 10: what they add is 9 times their input."""
    remembered = Remembered()
    text, temb = torch.zeros(3, 1, 1), torch.zeros(3, 1)

    def run_rest(image: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return image * 10, text

    def advance(compute: list[bool], image: torch.Tensor) -> torch.Tensor:
        return _advance(remembered, compute, image / 100, image, text, temb, run_rest)

    start, later, last = (torch.tensor([1.0, 2, 3]).reshape(3, 1, 1) + shift for shift in (0, 10, 20))
    assert torch.equal(advance([True] * 3, start), start * 10)
    ran = torch.tensor(computing).reshape(3, 1, 1)
    assert torch.equal(advance(computing, later), torch.where(ran, later * 10, later + start * 9))
    assert torch.equal(advance([False] * 3, last), last + torch.where(ran, later, start) * 9)
    assert remembered.first is not None
    assert torch.equal(remembered.first, torch.where(ran, later, start) / 100)
    assert remembered.skips == [1 if one else 2 for one in computing]


def test_only_output_tokens_are_compared() -> None:
    before, after = torch.ones(2, 5, 3), torch.arange(30.0).reshape(2, 5, 3)
    ids = torch.tensor([[0.0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1], [1, 0, 2]])
    assert torch.equal(_change(after, before, ids, Remembered()), after[:, :2] - 1)


@pytest.mark.parametrize(
    ("cache", "label", "on_random"),
    [
        (FirstBlockCache(), None, "first_block_cache by threshold on random weights: hit rate meaningless"),
        (
            FirstBlockCache(schedule="every_second"),
            f"{FIXED}the first two, the last and every second step between computed, 15 of 28 steps at 28",
            " (hit rate on random weights means nothing)",
        ),
        (
            FirstBlockCache(schedule=(4, 0, 40)),
            f"{FIXED}steps 0, 4, 40 computed, 2 of 28 steps at 28",
            " (hit rate on random weights means nothing)",
        ),
    ],
)
def test_label_says_which_steps_are_computed(cache: FirstBlockCache, label: str | None, on_random: str) -> None:
    assert cache.label(architecture_only=False) == label
    assert cache.label(architecture_only=True) == (label or "") + on_random


def test_parameters_are_those_that_decide() -> None:
    by_data = {"threshold": 0.08, "warmup_steps": 2, "max_consecutive_skips": None}
    assert FirstBlockCache().parameters() == by_data
    assert FirstBlockCache(schedule=(0, 2)).parameters() == {"schedule": [0, 2]}
    assert FirstBlockCache().computed_steps(8) == frozenset()
    assert FirstBlockCache(schedule=(0, 7, 8)).computed_steps(8) == {0, 7}
    assert FirstBlockCache().on_random_weights().parameters() == {"schedule": "every_second"}
    with pytest.raises(InvalidInput) as caught:
        FirstBlockCache(schedule=(0,), threshold=0.1, warmup_steps=1)
    assert str(caught.value) == (
        "Bad parameters for first_block_cache: a schedule fixes the decision; leave out threshold, warmup_steps."
    )
    with pytest.raises(InvalidInput, match="must compute step 0, there is nothing to reuse before it"):
        FirstBlockCache(schedule=(1,))


def test_everything_unsupported_is_named_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        _require_supported({"a": 1, "b": 2}, None, [])
    assert str(caught.value) == (
        "first_block_cache does not support ControlNet and attention arguments (a, b; IP-Adapter is one of them); "
        "leave one of the two out."
    )
    for nothing in ({}, None):
        _require_supported(nothing, None, None)


def test_ids_with_a_batch_dimension_are_those_of_one_sample() -> None:
    text, image = torch.zeros(2, 3), torch.ones(4, 3)
    joined = torch.cat([text, image])
    assert torch.equal(_joined(text[None].expand(2, -1, -1), image[None]), joined)
    assert torch.equal(_joined(text, image), joined)
    ids = torch.tensor([[[0.0, 0, 0], [1, 0, 0]]])
    assert _change(torch.ones(1, 2, 1), torch.zeros(1, 2, 1), ids, Remembered()).shape == (1, 1, 1)


@pytest.mark.parametrize(
    ("parameters", "step", "drifts", "skips", "compute"),
    [
        ({"warmup_steps": 1}, 1, (0.5, 0.25, float("nan")), (0, 0, 0), [True, False, True]),
        ({"warmup_steps": 2}, 1, (0.0, 0.0, 0.0), (0, 0, 0), [True] * 3),
        ({"max_consecutive_skips": 2}, 5, (0.0, 0.0, 0.0), (1, 2, 3), [False, True, True]),
        ({"schedule": (0, 5)}, 5, None, (0, 0, 0), [True] * 3),
        ({"schedule": (0, 5)}, 4, None, (0, 0, 0), [False] * 3),
    ],
)
def test_sample_is_skipped_below_the_threshold_alone(
    parameters: dict[str, Any], step: int, drifts: Any, skips: Any, compute: list[bool]
) -> None:
    cache = FirstBlockCache(**({} if drifts is None else {"threshold": 0.5}), **parameters)
    last = torch.tensor([-2.0, 20.0, 0.2]).reshape(3, 1, 1).expand(3, 2, 2)
    change = None if drifts is None else last * (1 + torch.tensor(drifts).reshape(3, 1, 1))
    remembered, call = Remembered(last, last, list(skips)), SimpleNamespace(step=step, total_steps=8)
    assert _decide(cache, call, remembered, change, 3) == compute
    assert _decide(cache, call, Remembered(), change, 3) == [True] * 3


@pytest.mark.parametrize(
    ("numerator", "denominator", "threshold", "computes"), [(1, 0, 0.501, True), (0, 1, 0.499, False)]
)
def test_drift_of_half_precision_is_a_mean_in_float32(
    numerator: int, denominator: int, threshold: float, computes: bool
) -> None:
    """Of 257 ones in 512 numbers it is 0.50195, which bfloat16 rounds to 0.5."""
    ones = (torch.arange(512).reshape(1, 1, 512) < 257).bfloat16()
    last = ones if denominator else torch.ones_like(ones)
    change = last + (ones if numerator else 0.25)
    cache, call = FirstBlockCache(threshold=threshold), SimpleNamespace(step=5, total_steps=8)
    assert _decide(cache, call, Remembered(last, last, [0]), change, 1) == [computes]
