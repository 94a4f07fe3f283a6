from __future__ import annotations

import math

import numpy as np
import pytest

from kontext_fast.stats.intervals import ratio_interval


def simulate(rng: np.random.Generator, factor: float, rounds: int) -> tuple[dict[int, float], dict[int, float]]:
    """Log-normal processes; a round's processes share an effect larger than their own noise."""
    shared = rng.normal(0, 0.10, size=rounds)
    own = rng.normal(0, 0.03, size=(2, rounds))
    baseline = np.exp(shared + own[0])
    other = np.exp(shared + own[1]) / factor
    return dict(enumerate(baseline)), dict(enumerate(other))


@pytest.mark.parametrize("rounds", [3, 5, 10])
def test_interval_covers_the_true_factor_as_often_as_it_says(rounds: int) -> None:
    rng = np.random.default_rng(rounds)
    hits = 0
    for _ in range(2000):
        estimate = ratio_interval(*simulate(rng, 1.6, rounds))
        assert estimate is not None
        assert estimate.interval is not None
        hits += estimate.interval[0] <= 1.6 <= estimate.interval[1]
    assert 0.93 <= hits / 2000 <= 0.97


def test_a_configuration_against_itself_is_called_different_in_one_of_twenty() -> None:
    rng = np.random.default_rng(7)
    estimates = [ratio_interval(*simulate(rng, 1.0, 5)) for _ in range(2000)]
    alarms = sum(estimate is not None and estimate.excludes_one for estimate in estimates)
    assert 0.03 <= alarms / 2000 <= 0.07


def test_pairing_by_round_removes_what_rounds_share() -> None:
    baseline = {1: 1.0, 2: 5.0, 3: 0.2}
    estimate = ratio_interval(baseline, {round_: value / 2 for round_, value in baseline.items()})
    assert estimate is not None
    assert estimate.value == pytest.approx(2.0)
    assert estimate.interval == pytest.approx((2.0, 2.0))


def test_the_factor_is_above_one_where_the_other_takes_less_time_and_averages_geometrically() -> None:
    estimate = ratio_interval({1: 4.0, 2: 1.0}, {1: 1.0, 2: 1.0})
    assert estimate is not None
    assert estimate.value == pytest.approx(2.0)
    assert estimate.n == 2


def test_swapping_the_two_inverts_the_factor_and_its_interval() -> None:
    a, b = simulate(np.random.default_rng(3), 1.3, 4)
    forth, back = ratio_interval(a, b), ratio_interval(b, a)
    assert forth is not None
    assert back is not None
    assert forth.interval is not None
    assert back.interval is not None
    assert math.isclose(forth.value * back.value, 1)
    assert math.isclose(forth.interval[0] * back.interval[1], 1)


def test_only_shared_rounds_count() -> None:
    estimate = ratio_interval({1: 2.0, 2: 9.0}, {1: 1.0, 3: 1.0})
    assert estimate is not None
    assert (estimate.value, estimate.interval, estimate.n) == (2.0, None, 1)
    assert ratio_interval({1: 1.0}, {2: 1.0}) is None
