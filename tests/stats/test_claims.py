"""What may be claimed of two speeds beside an A/A control, and the smallest slow-down that is found."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from kontext_fast.stats.claims import (
    SpeedClaim,
    _power,
    detectable_slowdown,
    faster_without_control,
    resolution,
    speed_claim,
)
from kontext_fast.stats.intervals import Estimate


@pytest.mark.parametrize(
    ("interval", "limit"),
    [((0.99, 1.02), 0.02), ((0.95, 1.01), 1 / 0.95 - 1), ((1.01, 1.03), 0.03), (None, None)],
)
def test_resolution_is_the_far_end_of_the_control(interval: tuple[float, float] | None, limit: float | None) -> None:
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
def test_claim_needs_an_interval_beyond_the_control(
    value: float, interval: tuple[float, float] | None, limit: float | None, verdict: SpeedClaim
) -> None:
    assert speed_claim(Estimate(value, interval, 5), limit) == verdict


def test_limit_is_symmetric_around_one() -> None:
    for value in (1.03, 1 / 1.03):
        estimate = Estimate(value, (value - 0.001, value + 0.001), 5)
        assert speed_claim(estimate, math.expm1(math.log(1.03) + 1e-9)) == "no difference found"
        assert speed_claim(estimate, math.expm1(math.log(1.03) - 1e-9)) in ("faster", "slower")


@pytest.mark.parametrize("power", [0.06, 0.5, 0.8, 0.99])
def test_detectable_slowdown_matches_a_second_implementation(power: float) -> None:
    error, freedom = 0.014 / math.sqrt(5), 4
    shift = math.log1p(detectable_slowdown(error, freedom, power)) / error
    critical = stats.t.ppf(0.975, freedom)
    found = stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift)
    assert found == pytest.approx(power, abs=1e-6)


def test_power_is_certain_far_out() -> None:
    """Where scipy gives NaN; the search for a slow-down begins there."""
    assert _power(1000.0, 4) == 1.0
    assert _power(60.0, 4) == pytest.approx(1.0)
    assert _power(0.0, 4) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("value", "half", "n", "compared", "faster"),
    [
        (1.20, 0.05, 3, 1, True),
        (1.20, 0.15, 3, 1, False),
        (1.20, 0.07, 3, 1, True),
        (1.20, 0.07, 3, 5, False),
        (1.20, 0.07, 10, 5, True),
        (1.0, 0.0, 5, 1, False),
        (0.8, 0.05, 5, 1, False),
    ],
)
def test_claim_without_control_pays_for_all_that_are_compared(
    value: float, half: float, n: int, compared: int, faster: bool
) -> None:
    """By t of the rounds: of the usual half width 1.62 times for one at n = 3, 3.7 for five, and 1.70 at n = 10."""
    bounds = (value * math.exp(-half), value * math.exp(half))
    assert faster_without_control(Estimate(value, bounds, n), compared) is faster
    assert not faster_without_control(Estimate(value, None, n), compared)


@pytest.mark.parametrize(("n", "compared"), [(3, 1), (4, 3), (10, 5)])
def test_bound_without_control_is_bonferronis(n: int, compared: int) -> None:
    usual, corrected = (stats.t.ppf(level, n - 1) for level in (0.975, 1 - 0.01 / compared))
    for share, faster in ((0.999, False), (1.001, True)):
        value = math.exp(share * 0.1 * corrected / usual)
        interval = (value / math.exp(0.1), value * math.exp(0.1))
        assert faster_without_control(Estimate(value, interval, n), compared) is faster
