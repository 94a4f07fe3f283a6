"""The rule of what is no farther from the converged reference; and the reference, on an equation that is known."""

from __future__ import annotations

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
    Baseline,
    converged_reference,
    packed,
    reference_evaluations,
)
from kontext_fast.verify.paths import PathRunner

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


def test_a_reference_less_exact_than_what_is_compared_cannot_tell() -> None:
    near = 0.8 * BASELINE * NOISE
    assert closeness(near, BASELINE, 0.3 * near) is Closeness.NO_FARTHER
    assert closeness(near, BASELINE, 0.4 * near) is Closeness.CANNOT_TELL
    assert closeness(near[:1], BASELINE[:1], EXACT[:1]) is Closeness.CANNOT_TELL


class _KnownEquation:
    """Euler's method for dx/dt = x from 1 at t = 0, whose end at t = 1 is e."""

    def __init__(self) -> None:
        self.ran: list[int] = []

    def euler(self, items: Any, seeds: Any, steps: int) -> torch.Tensor:
        self.ran.append(steps)
        return torch.full((len(seeds), 2, 2), (1 + 1 / steps) ** steps)


@pytest.mark.parametrize("baseline_steps", [5, 8, 20])
def test_reference_is_finer_than_its_paths_and_knows_its_error(baseline_steps: int) -> None:
    """Of baselines with fitting steps, and of one that needs a path more."""
    equation = _KnownEquation()
    baseline = Baseline(baseline_steps, equation.euler([], (0, 1), baseline_steps).numpy())
    reference = converged_reference(cast("PathRunner", equation), [], (0, 1), baseline, 32)
    wrong = np.abs(reference.target[:, 0, 0] / np.e - 1)
    finest = abs((1 + 1 / 32) ** 32 / np.e - 1)
    assert (wrong < finest / 15).all()
    np.testing.assert_allclose(reference.error, wrong, rtol=0.3)
    assert sum(equation.ran) - baseline_steps == reference_evaluations(baseline_steps, 32)
    assert reference_evaluations(baseline_steps, 32) == (56 if baseline_steps == 20 else 48)


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
