"""What the statistics promise, held against simulated benchmarks whose truth is known. Seeds are fixed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from kontext_fast.stats.claims import Verdict, paired_power, resolution, speed_verdict
from kontext_fast.stats.intervals import Estimate, bootstrap_mean, ratio_interval, unpaired_ratio
from kontext_fast.stats.series import drift

SIMULATIONS = 1000
ROUNDS = 5
OWN = 0.01
"""Standard deviation of the logarithm of a process, beside what its round shares."""


def simulate(rng: np.random.Generator, factors: list[float], rounds: int = ROUNDS) -> list[dict[int, float]]:
    """Per configuration the value of each round's process; a round shares an effect far larger than their own."""
    shared = rng.normal(0, 0.10, size=rounds)
    return [dict(enumerate(np.exp(shared + rng.normal(0, OWN, size=rounds)) / factor)) for factor in factors]


def factor(baseline: dict[int, float], other: dict[int, float]) -> Estimate:
    estimate = ratio_interval(baseline, other)
    assert estimate is not None
    return estimate


def rate_interval(hits: int) -> tuple[float, float]:
    """99.9 % Clopper-Pearson: a right implementation fails once in a thousand seeds, and the seed is fixed."""
    found = stats.binomtest(hits, SIMULATIONS).proportion_ci(0.999)
    return found.low, found.high


def verdicts(true_factor: float, seed: int) -> list[Verdict]:
    rng = np.random.default_rng(seed)
    found: list[Verdict] = []
    for _ in range(SIMULATIONS):
        baseline, again, other = simulate(rng, [1.0, 1.0, true_factor])
        found.append(speed_verdict(factor(baseline, other), resolution(factor(baseline, again))))
    return found


def test_the_interval_alone_calls_equals_different_at_its_nominal_rate() -> None:
    rng = np.random.default_rng(1)
    alarms = sum(factor(*simulate(rng, [1.0, 1.0])).excludes_one for _ in range(SIMULATIONS))
    low, high = rate_interval(alarms)
    assert low <= 0.05 <= high


def test_beside_an_a_a_control_equals_are_called_different_less_often_still() -> None:
    alarms = sum(verdict in ("faster", "slower") for verdict in verdicts(1.0, seed=2))
    assert rate_interval(alarms)[0] < 0.02


def test_a_slow_down_of_three_percent_is_found_at_the_stated_power() -> None:
    rng = np.random.default_rng(3)
    found = 0
    for _ in range(SIMULATIONS):
        estimate = factor(*simulate(rng, [1.0, 1 / 1.03]))
        found += estimate.excludes_one and estimate.value < 1
    stated = paired_power(0.03, OWN * math.sqrt(2), ROUNDS)
    low, high = rate_interval(found)
    assert 0.85 < stated < 0.97
    assert low <= stated <= high


def test_a_slow_down_of_five_percent_is_called_slower_beside_the_control() -> None:
    found = verdicts(1 / 1.05, seed=4)
    assert found.count("slower") > 0.9 * SIMULATIONS
    assert "faster" not in found


@pytest.mark.parametrize("rounds", [3, 5, 10])
def test_the_paired_interval_covers_the_truth(rounds: int) -> None:
    rng = np.random.default_rng(50 + rounds)
    covered = 0
    for _ in range(SIMULATIONS):
        low, high = factor(*simulate(rng, [1.0, 1.6], rounds)).interval or (0, 0)
        covered += low <= 1.6 <= high
    assert 0.93 <= covered / SIMULATIONS <= 0.97


@pytest.mark.parametrize(("before", "after"), [(5, 5), (5, 12)])
def test_the_unpaired_interval_covers_the_truth_when_the_spreads_differ(before: int, after: int) -> None:
    rng = np.random.default_rng(60 + after)
    covered = 0
    for _ in range(SIMULATIONS):
        estimate = unpaired_ratio(
            list(np.exp(rng.normal(0, 0.02, size=before))), list(1.03 * np.exp(rng.normal(0, 0.05, size=after)))
        )
        assert estimate is not None
        low, high = estimate.interval or (0, 0)
        covered += low <= 1.03 <= high
    assert 0.93 <= covered / SIMULATIONS <= 0.97


def test_the_bootstrap_of_many_items_covers_the_mean_of_a_skewed_distribution() -> None:
    rng = np.random.default_rng(7)
    simulations, covered = 200, 0
    for values in rng.gamma(4.0, 1.0, size=(simulations, 100)):
        low, high = bootstrap_mean(list(values)).interval or (0, 0)
        covered += low <= 4.0 <= high
    found = stats.binomtest(covered, simulations).proportion_ci(0.999)
    assert found.low <= 0.95 <= found.high


def test_drift_is_seen_in_noise_at_no_more_than_its_rate_and_in_a_warming_card_nearly_always() -> None:
    rng = np.random.default_rng(8)
    noise = rng.normal(1.0, 0.01, size=(SIMULATIONS, 12))
    warming = noise * (1 + np.linspace(0, 0.04, 12))

    def found(series: np.ndarray) -> int:
        return sum(result is not None and result.found for result in map(drift, series.tolist()))

    assert rate_interval(found(noise))[0] <= 0.05
    assert found(warming) > 0.9 * SIMULATIONS
