"""Percentiles, outliers, drift, power and the bootstrap, against published values and a second implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from kontext_fast.stats.claims import paired_power, smallest_found
from kontext_fast.stats.intervals import bootstrap_mean, unpaired_log_ratio, unpaired_ratio
from kontext_fast.stats.series import MIN_VALUES, drift, outliers, percentile, values_needed


def test_percentiles_need_what_mlperf_asks_for() -> None:
    assert [values_needed(percent) for percent in (90, 95, 99)] == [64, 130, 662]
    with pytest.raises(ValueError, match="percentile"):
        values_needed(100)


@pytest.mark.parametrize(("percent", "needed"), [(90, 64), (95, 130), (99, 662)])
def test_a_percentile_of_too_few_values_is_not_given(percent: float, needed: int) -> None:
    values = [float(value) for value in range(needed)]
    assert percentile(values[1:], percent) is None
    exact = percentile(values, percent)
    assert exact in values
    assert sum(value <= exact for value in values) >= percent / 100 * needed


def test_outliers_are_pointed_at_and_stay() -> None:
    values = [1.0, 1.1, 0.9, 1.0, 7.0, 1.05]
    assert outliers(values) == (4,)
    assert len(values) == 6
    assert outliers([1.0, 1.0, 9.0]) == ()
    assert outliers([2.0] * 9) == ()


def test_drift_matches_the_exact_test_and_measures_the_rise() -> None:
    rising = drift([1.00, 1.01, 1.02, 1.03, 1.04, 1.05])
    assert rising is not None
    # All 15 pairs in order: 2 of 6! permutations are at least as extreme.
    assert rising.p_value == pytest.approx(2 / math.factorial(6))
    assert rising.change == pytest.approx(0.05 / 1.025)
    assert rising.found
    same = drift([1.0] * 6)
    assert same is not None
    assert (same.p_value, same.change, same.found) == (1.0, 0.0, False)
    assert drift([1.0] * (MIN_VALUES - 1)) is None


def test_power_matches_a_second_way_to_compute_it() -> None:
    shift, freedom = math.log1p(0.03) / (0.014 / math.sqrt(5)), 4
    critical = stats.t.ppf(0.975, freedom)
    expected = stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift)
    assert paired_power(0.03, 0.014, 5) == pytest.approx(expected)
    assert paired_power(0.0, 0.014, 5) == pytest.approx(0.05)
    assert paired_power(0.5, 0.001, 5) == pytest.approx(1.0)
    for rounds, spread in ((1, 0.01), (5, 0.0)):
        with pytest.raises(ValueError, match="power needs"):
            paired_power(0.03, spread, rounds)


def test_the_smallest_effect_found_is_found_with_that_power() -> None:
    effect = smallest_found(0.014 / math.sqrt(5), 4, 0.8)
    assert paired_power(effect, 0.014, 5) == pytest.approx(0.8, abs=1e-6)


def test_the_unpaired_ratio_is_welchs() -> None:
    before, after = [1.0, 1.1, 0.95], [1.2, 1.25, 1.19, 1.3]
    estimate = unpaired_ratio(before, after)
    expected = stats.ttest_ind(np.log(after), np.log(before), equal_var=False)
    assert estimate is not None
    assert estimate.value == pytest.approx(math.exp(np.mean(np.log(after)) - np.mean(np.log(before))))
    low, high = expected.confidence_interval(0.95)
    assert estimate.interval == pytest.approx((math.exp(low), math.exp(high)))
    assert estimate.n == 3


def test_the_unpaired_ratio_of_too_few_values_claims_nothing() -> None:
    assert unpaired_ratio([], [1.0]) is None
    single = unpaired_ratio([1.0], [2.0, 2.0])
    assert single is not None
    assert single.value == pytest.approx(2.0)
    assert single.interval is None
    same = unpaired_log_ratio([0.0, 0.0], [1.0, 1.0])
    assert same is not None
    assert same.interval == (1.0, 1.0)


def test_the_bootstrap_needs_thirty_items_and_repeats_itself() -> None:
    values = list(np.random.default_rng(0).gamma(2.0, size=30))
    assert bootstrap_mean(values[1:]).interval is None
    interval = bootstrap_mean(values).interval
    assert interval is not None
    assert interval[0] < np.mean(values) < interval[1]
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean([3.0] * 30).interval == (3.0, 3.0)
    with pytest.raises(ValueError, match="nothing"):
        bootstrap_mean([])
