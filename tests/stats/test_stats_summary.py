from __future__ import annotations

import numpy as np
import pytest

from kontext_fast.stats.intervals import mean_estimate, process_value, summarize


def test_a_process_value_weighs_items_equally_however_often_each_was_called() -> None:
    assert process_value({"a": [1.0, 1.0, 1.0, 1.0], "b": [3.0]}) == 2.0


@pytest.mark.parametrize("values", [{}, {"a": []}])
def test_a_process_without_values_is_refused(values: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        process_value(values)


def test_mean_and_interval_match_a_worked_example() -> None:
    # mean 2, sd 1, n 3, t(2, 0.975) = 4.302653: half width 4.302653 / sqrt(3) = 2.484138
    estimate = mean_estimate([1.0, 2.0, 3.0])
    assert estimate.value == 2.0
    assert estimate.interval == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)
    assert estimate.n == 3


def test_one_process_gives_a_number_without_an_interval() -> None:
    summary = summarize([1.5])
    assert summary.mean.value == 1.5
    assert summary.mean.interval is None
    assert not summary.mean.excludes_one


def test_no_value_is_deleted() -> None:
    values = [1.0, 1.0, 1.0, 1.0, 1000.0]
    summary = summarize(values)
    assert summary.values == tuple(values)
    assert summary.mean.value == pytest.approx(200.8)
    assert summary.median == 1.0


def test_interval_of_the_mean_covers_the_truth_when_processes_differ() -> None:
    """Calls of a process share its offset; an interval over pooled calls would be far too narrow here."""
    rng = np.random.default_rng(20240607)
    simulations, processes, calls, truth = 2000, 5, 4, 1.0
    covered = pooled_covered = 0
    for _ in range(simulations):
        offsets = rng.normal(truth, 0.05, size=(processes, 1))
        walls = offsets + rng.normal(0, 0.01, size=(processes, calls))
        low, high = mean_estimate([process_value({"item": list(row)}) for row in walls]).interval or (0, 0)
        covered += low <= truth <= high
        low, high = mean_estimate(list(walls.ravel())).interval or (0, 0)
        pooled_covered += low <= truth <= high
    assert 0.93 <= covered / simulations <= 0.97
    assert pooled_covered / simulations < 0.85
