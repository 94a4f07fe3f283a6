from __future__ import annotations

import numpy as np
import pytest

from kontext_fast.stats.intervals import MIN_ITEMS, acceptance, paired_difference, wilson


def test_wilson_matches_published_values() -> None:
    # Newcombe (1998): 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611
    assert wilson(81, 263).interval == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20).interval == pytest.approx((0.0, 0.1611), abs=5e-5)


@pytest.mark.parametrize(("accepted", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_what_is_no_proportion_is_refused(accepted: float, n: int) -> None:
    with pytest.raises(ValueError, match="not a proportion"):
        wilson(accepted, n)


def test_wilson_covers_the_truth() -> None:
    rng = np.random.default_rng(11)
    hits = 0
    for accepted in rng.binomial(60, 0.85, size=2000):
        low, high = wilson(int(accepted), 60).interval or (0, 0)
        hits += low <= 0.85 <= high
    assert 0.93 <= hits / 2000 <= 0.97


def test_acceptance_counts_items_not_outputs() -> None:
    estimate = acceptance({"a": 1.0, "b": 0.5, "c": 0.0})
    assert estimate is not None
    assert (estimate.value, estimate.n) == (0.5, 3)
    assert acceptance({}) is None


def test_a_difference_over_few_items_has_no_interval() -> None:
    few = {str(i): 1.0 for i in range(MIN_ITEMS - 1)}
    estimate = paired_difference(few, few)
    assert estimate is not None
    assert (estimate.value, estimate.interval, estimate.n) == (0.0, None, MIN_ITEMS - 1)


def test_a_difference_uses_only_items_that_both_have() -> None:
    estimate = paired_difference({"a": 1.0, "b": 0.0}, {"a": 0.0, "c": 1.0})
    assert estimate is not None
    assert (estimate.value, estimate.n) == (-1.0, 1)
    assert paired_difference({"a": 1.0}, {"b": 1.0}) is None


def test_items_that_all_agree_do_not_give_certainty() -> None:
    same = {str(i): 1.0 for i in range(40)}
    estimate = paired_difference(same, same)
    assert estimate is not None
    assert estimate.interval is not None
    assert estimate.interval[0] < -0.01
    assert estimate.interval[1] > 0.01


@pytest.mark.parametrize(("both", "only_baseline", "only_other"), [(0.80, 0.08, 0.04), (0.60, 0.15, 0.15)])
def test_the_paired_interval_covers_the_true_difference(both: float, only_baseline: float, only_other: float) -> None:
    rng = np.random.default_rng(5)
    truth, n, hits = only_other - only_baseline, 100, 0
    for _ in range(2000):
        kind = rng.choice(4, size=n, p=[both, only_baseline, only_other, 1 - both - only_baseline - only_other])
        baseline = {str(i): float(k in (0, 1)) for i, k in enumerate(kind)}
        other = {str(i): float(k in (0, 2)) for i, k in enumerate(kind)}
        estimate = paired_difference(baseline, other)
        assert estimate is not None
        assert estimate.interval is not None
        hits += estimate.interval[0] <= truth <= estimate.interval[1]
    assert 0.93 <= hits / 2000 <= 0.97
