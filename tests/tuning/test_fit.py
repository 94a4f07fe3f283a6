"""Search and fit on paths whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kontext_fast.tuning.fit import Products, distances, least_distances, search_levels, spread
from kontext_fast.tuning.solver_fit import products_of
from kontext_fast.verify.paths import DensePath


def curve_products(levels: int = 40, items: int = 12) -> Products:
    """Velocities that change fast near both ends only, and their sum."""
    random = np.random.default_rng(0)
    times = np.linspace(0, 1, levels)
    shapes = np.stack([np.ones(levels), np.exp(-20 * times), np.exp(-20 * (1 - times)), times])
    vectors, ends = [], []
    for _ in range(items):
        velocities = shapes.T @ random.normal(size=(4, 16))
        noise = random.normal(size=16)
        vectors.append(np.concatenate([noise[None], velocities]))
        ends.append(noise + velocities.mean(0))
    stacked = torch.from_numpy(np.stack(vectors)).transpose(0, 1)
    return products_of(list(stacked), torch.from_numpy(np.stack(ends)))


def test_an_exact_combination_is_found() -> None:
    random = np.random.default_rng(0)
    vectors = [torch.from_numpy(random.normal(size=(5, 3, 4))) for _ in range(3)]
    target = vectors[0] * 1.0 - 0.25 * vectors[1] - 0.75 * vectors[2]
    fit = least_distances(products_of(vectors, target))
    np.testing.assert_allclose(fit.coefficients, [1, -0.25, -0.75], atol=1e-5)
    assert fit.mean < 1e-5


def test_a_chaotic_item_does_not_decide_for_the_others() -> None:
    random = np.random.default_rng(1)
    vectors = [torch.from_numpy(random.normal(size=(20, 64))) for _ in range(2)]
    target = vectors[0] - vectors[1]
    target[0] = 40 * torch.from_numpy(random.normal(size=64)) + 30 * vectors[1][0]
    products = products_of(vectors, target)
    plain = np.linalg.solve(products.gram.sum(0), products.cross.sum(0))
    robust = least_distances(products)
    assert np.median(robust.distances) < 0.2 * np.median(distances(products, plain))


def test_the_search_beats_its_start_and_keeps_gaps() -> None:
    products = curve_products()
    start = [0, 2, 4]
    before = least_distances(products.of([0, *(1 + index for index in start)]), 4).mean
    chosen, after = search_levels(products, start)
    assert after < 0.5 * before
    assert chosen[0] == 0
    assert min(np.diff(chosen)) >= 2
    assert (chosen, after) == search_levels(products, start)


def error_of_a_path(steps: int, order: int, *, keep: bool) -> float:
    """On x' = -x over noise levels that are not evenly apart, whose solution is known."""
    path = DensePath((np.linspace(1, 0, steps + 1) ** 1.5).tolist(), order, keep=keep)
    state = torch.ones(1)
    for _ in range(steps):
        state = path.advance(state, -state)
    assert len(path.states) == (steps + 1 if keep else 1)
    assert len(path.velocities) == (steps if keep else order)
    return abs(float(state) / np.e - 1)


def test_a_dense_path_errs_as_its_order_says() -> None:
    errors = {
        (order, steps): error_of_a_path(steps, order, keep=order > 1) for order in (1, 2, 3) for steps in (20, 40)
    }
    assert errors[1, 20] / errors[1, 40] == pytest.approx(2, rel=0.1)
    assert errors[2, 20] / errors[2, 40] == pytest.approx(4, rel=0.1)
    assert errors[3, 40] < 0.75 * errors[2, 40]
    assert error_of_a_path(20, 3, keep=False) == errors[3, 20]


def test_spread_levels_are_apart_and_dense_at_both_ends() -> None:
    for evaluations in (3, 6, 9, 12):
        for density in (1.0, 1.5):
            chosen = spread(112, evaluations, density=density)
            assert len(chosen) == evaluations
            assert chosen[0] == 0
            assert chosen[-1] < 112
            assert min(np.diff(chosen)) >= 2
    even, dense = spread(112, 9), spread(112, 9, density=1.5)
    assert dense[1] < even[1]
    assert dense[-2] > even[-2]
