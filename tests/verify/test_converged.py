"""The rule of what is no farther from the converged reference; and the reference, on an equation that is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch

from kontext_fast.verify.converged import (
    Closeness,
    closeness,
    compare_with_converged,
    relative_distances,
)
from kontext_fast.verify.converged_reference import (
    converged_reference,
    packed,
    reference_evaluations,
)
from kontext_fast.verify.paths import DensePath, PathRunner

RANDOM = np.random.default_rng(0)
BASELINE = np.exp(RANDOM.normal(-3, 0.5, 100))
NOISE = np.exp(RANDOM.normal(0, 0.1, 100))
EXACT = np.zeros(100)


def test_nearer_is_no_farther_and_much_farther_is_farther() -> None:
    assert closeness(0.8 * BASELINE * NOISE, BASELINE, EXACT) is Closeness.NO_FARTHER
    assert closeness(1.3 * BASELINE * NOISE, BASELINE, EXACT) is Closeness.FARTHER


def test_alike_is_no_farther_within_a_tenth_but_not_nearer() -> None:
    alike = BASELINE * NOISE / NOISE.mean()
    assert closeness(alike, BASELINE, EXACT) is Closeness.NO_FARTHER
    assert closeness(alike, BASELINE, EXACT, ratio_at_most=1) is Closeness.CANNOT_TELL


def test_few_items_far_off_decide_by_the_bound_of_the_mean() -> None:
    """A mean that happens to lie below the limit is not enough: few items hold it up, so that it is uncertain."""
    values = 0.5 * BASELINE * NOISE
    values[:3] += 18 * BASELINE.mean()
    values *= 1.05 * BASELINE.mean() / values.mean()
    assert values.mean() < 1.1 * BASELINE.mean()
    assert closeness(values, BASELINE, EXACT) is Closeness.CANNOT_TELL


def test_a_tenth_farther_is_the_limit_of_the_mean_and_beyond_that_of_ratios() -> None:
    ones = np.ones(2)
    assert closeness(1.1 * ones, ones, np.zeros(2), ratio_at_most=1.2) is Closeness.NO_FARTHER
    assert closeness(1.1 * ones, ones, np.zeros(2)) is Closeness.CANNOT_TELL
    # As far as baseline is not nearer.
    assert closeness(BASELINE, BASELINE, EXACT, ratio_at_most=1) is Closeness.CANNOT_TELL


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(0.05 * 1.5, 1.0, id="the ratio, of half of the items that are hardly apart"),
        pytest.param(0.05 * 0.7, 1.3, id="the mean, of half of the items that are far off"),
    ],
)
def test_either_bound_alone_tells_that_a_preset_is_farther(first: float, second: float) -> None:
    """Half of baseline's distances are 0.05 and half are 1."""
    values, baseline = np.tile([first, second], 50), np.tile([0.05, 1.0], 50)
    assert closeness(values, baseline, EXACT) is Closeness.FARTHER


def test_a_reference_less_exact_than_the_compared_cannot_tell() -> None:
    near = 0.8 * BASELINE * NOISE
    assert closeness(near, BASELINE, 0.3 * near) is Closeness.NO_FARTHER
    assert closeness(near, BASELINE, 0.4 * near) is Closeness.CANNOT_TELL
    assert closeness(near[:1], BASELINE[:1], EXACT[:1]) is Closeness.CANNOT_TELL


class _KnownEquation:
    """dx/ds = -x / (s + w) from the noise level 1 to 0, which changes most at the end; with rounding as of a model."""

    WIDTH = 0.1
    END = (1 + WIDTH) / WIDTH

    def __init__(self, rounding: float = 0.0) -> None:
        self._rounding, self._random = rounding, np.random.default_rng(0)
        self.evaluations = 0

    def levels(self, items: Any, steps: int) -> list[float]:
        return [float(level) for level in np.linspace(1, 0, steps + 1)]

    def dense(self, items: Any, seeds: Any, levels: Sequence[float], *, keep: bool) -> DensePath:
        path, latents = DensePath(levels, 3, keep=keep), torch.ones(len(seeds), 2, 2)
        for level in path.noise_levels:
            rounding = self._rounding * self._random.normal(size=tuple(latents.shape))
            latents = path.advance(latents, -latents / (level + self.WIDTH) * (1 + torch.from_numpy(rounding)))
            self.evaluations += 1
        return path


def _reference(equation: _KnownEquation, steps: int, items: int = 2) -> tuple[float, float]:
    """The mean error of a reference, and what it says of it."""
    reference = converged_reference(cast("PathRunner", equation), [], tuple(range(items)), steps)
    exact = np.full_like(reference.target, equation.END)
    return float(relative_distances(reference.target, exact).mean()), float(reference.error.mean())


def test_reference_is_near_in_few_steps_and_knows_its_error() -> None:
    equation = _KnownEquation()
    wrong, stated = _reference(equation, 112)
    assert equation.evaluations == reference_evaluations(112) == 168
    euler = np.prod([1 + (1 / 336) / (level + equation.WIDTH) for level in np.linspace(1, 0, 337)[:-1]])
    assert wrong < 0.05 * abs(float(euler) / equation.END - 1)
    assert wrong < stated < 5 * wrong
    assert 3 * wrong < _reference(equation, 56)[0]


def test_reference_states_the_error_that_rounding_leaves() -> None:
    wrong, stated = _reference(_KnownEquation(rounding=0.02), 112, items=200)
    assert wrong < stated < 1.15 * wrong


def test_distances_are_relative_to_the_target() -> None:
    target = np.ones((2, 3, 4), np.float32)
    moved = target.copy()
    moved[1] *= 1.25
    np.testing.assert_allclose(relative_distances(moved, target), [0, 0.25])
    assert closeness(np.array([0.1, 0.2]), np.array([0.1, 0.2]), np.array([0.0, 0.0])) is not Closeness.FARTHER


def test_latents_are_packed_as_the_pipeline_packs_them() -> None:
    from diffusers import FluxKontextPipeline

    latents = torch.randn(1, 16, 8, 12)
    expected = FluxKontextPipeline._pack_latents(latents, 1, 16, 8, 12)[0].numpy()
    np.testing.assert_array_equal(packed(latents[0].numpy()), expected)


def test_a_preset_is_compared_on_the_items_that_have_everything() -> None:
    keys = [(f"item {index}", 0) for index in range(100)]
    baseline = dict(zip(keys, BASELINE, strict=True))
    nearer = {key: 0.5 * value for key, value in baseline.items() if key != keys[0]}
    error = dict.fromkeys(keys, 1e-4)
    comparison = compare_with_converged(nearer, baseline, baseline, error)
    assert comparison is not None
    assert (comparison.closeness, comparison.items) == (Closeness.NO_FARTHER, 99)
    assert comparison.ratio == pytest.approx((0.5, 0.5, 0.5))
    assert "0.50 times as far" in comparison.sentence
    assert compare_with_converged(nearer, baseline, {}, error) is None
