from __future__ import annotations

import math

import pytest

from kontext_fast.stats.claims import Verdict, resolution, speed_verdict
from kontext_fast.stats.intervals import Estimate


@pytest.mark.parametrize(
    ("interval", "limit"),
    [((0.99, 1.02), 0.02), ((0.95, 1.01), 1 / 0.95 - 1), ((1.01, 1.03), 0.03), (None, None)],
)
def test_the_resolution_is_the_end_of_the_control_further_from_one(
    interval: tuple[float, float] | None, limit: float | None
) -> None:
    assert resolution(Estimate(1.0, interval, 5)) == (None if limit is None else pytest.approx(limit))
    assert resolution(None) is None


@pytest.mark.parametrize(
    ("value", "interval", "limit", "verdict"),
    [
        (1.5, (1.4, 1.6), 0.02, "faster"),
        (0.7, (0.6, 0.8), 0.02, "slower"),
        (1.05, (0.99, 1.11), 0.02, "no difference found"),
        (1.015, (1.01, 1.02), 0.02, "no difference found"),
        (1 / 1.015, (1 / 1.02, 1 / 1.01), 0.02, "no difference found"),
        (1.5, (1.4, 1.6), None, "cannot tell"),
        (1.5, None, 0.02, "cannot tell"),
    ],
)
def test_faster_needs_an_interval_without_one_and_more_than_the_control(
    value: float, interval: tuple[float, float] | None, limit: float | None, verdict: Verdict
) -> None:
    assert speed_verdict(Estimate(value, interval, 5), limit) == verdict


def test_the_limit_holds_alike_on_both_sides_of_one() -> None:
    for value in (1.03, 1 / 1.03):
        estimate = Estimate(value, (value - 0.001, value + 0.001), 5)
        assert speed_verdict(estimate, math.expm1(math.log(1.03) + 1e-9)) == "no difference found"
        assert speed_verdict(estimate, math.expm1(math.log(1.03) - 1e-9)) in ("faster", "slower")
