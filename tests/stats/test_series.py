"""Percentiles, outliers and drift, against published values and the exact test."""

from __future__ import annotations

import math

import pytest

from kontext_fast.stats.series import MIN_VALUES, drift, outliers, percentile, values_needed


def test_values_needed_are_those_of_mlperf() -> None:
    assert [values_needed(percent) for percent in (90, 95, 99)] == [64, 130, 662]
    with pytest.raises(ValueError, match="percentile"):
        values_needed(100)


@pytest.mark.parametrize(("percent", "needed"), [(90, 64), (95, 130), (99, 662)])
def test_percentile_of_too_few_values_is_none(percent: float, needed: int) -> None:
    values = [float(value) for value in range(needed)]
    assert percentile(values[1:], percent) is None
    exact = percentile(values, percent)
    assert exact in values
    assert sum(value <= exact for value in values) >= percent / 100 * needed


def test_outliers_are_located_and_kept() -> None:
    values = [1.0, 1.1, 0.9, 1.0, 7.0, 1.05]
    assert outliers(values) == (4,)
    assert len(values) == 6
    assert outliers([1.0, 1.0, 9.0]) == ()
    assert outliers([2.0] * 9) == ()
    assert outliers([1.0, 1.0, 1.0, 9.0]) == (3,)


def test_fences_are_tukeys() -> None:
    """Quartiles 1 and 3, so that the fences are -2 and 6."""
    assert outliers([0.0, 1.0, 2.0, 3.0, 6.1]) == (4,)
    assert outliers([0.0, 1.0, 2.0, 3.0, 5.9]) == ()
    assert outliers([4.0, 3.0, 2.0, 1.0, -2.1]) == (4,)
    assert outliers([4.0, 3.0, 2.0, 1.0, -1.95]) == ()


def test_drift_matches_the_exact_test_and_the_rise() -> None:
    rising = drift([1.00, 1.01, 1.02, 1.03, 1.04, 1.05])
    assert rising is not None
    # All 15 pairs in order: 2 of 6! permutations are at least as extreme.
    assert rising.p_value == pytest.approx(2 / math.factorial(6))
    assert rising.change == pytest.approx(0.05 / 1.025)
    assert rising.significant
    same = drift([1.0] * 6)
    assert same is not None
    assert (same.p_value, same.change, same.significant) == (1.0, 0.0, False)
    assert drift([1.0] * (MIN_VALUES - 1)) is None
    least = drift([1.0] * MIN_VALUES)
    assert least is not None
    assert least.n == MIN_VALUES
