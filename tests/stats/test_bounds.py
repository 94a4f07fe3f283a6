"""The bounds of quality verdicts by simulation: nominal rates lie in the intervals of the observed ones."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from kontext_fast.stats.bounds import (
    Ratio,
    divided,
    holm,
    items_needed,
    mean_bounds,
    quantile_bounds,
    ratio_bounds,
)
from kontext_fast.stats.intervals import wilson

VERIFICATIONS = 1000
CONFIDENCE = 0.95
NOMINAL = 1 - CONFIDENCE


def _interval(happened: np.ndarray) -> tuple[float, float]:
    estimate = wilson(float(happened.sum()), len(happened))
    assert estimate.interval is not None
    return estimate.interval


def _scalar_items(seed: int, n: int, mean: float = 0.0, deviation: float = 2.1) -> np.ndarray:
    """Differences of items whose two seeds agree in part, as scores of a metric do."""
    rng = np.random.default_rng(seed)
    of_item = rng.normal(0, deviation * math.sqrt(0.5), (VERIFICATIONS, n, 1))
    of_seed = rng.normal(0, deviation, (VERIFICATIONS, n, 2))
    return mean + (of_item + of_seed).mean(-1)


def _judged_items(seed: int, n: int, loss: float = 0.0, disagreement: float = 0.3) -> np.ndarray:
    """Differences of yes-or-no answers, two seeds an item; both of an item tend to go the same way."""
    rng = np.random.default_rng(seed)
    leaning = rng.beta(2, 2, (VERIFICATIONS, n, 1))
    changed = rng.uniform(size=(VERIFICATIONS, n, 2)) < disagreement
    up = rng.uniform(size=(VERIFICATIONS, n, 2)) < leaning - loss / disagreement / 2
    return (changed * np.where(up, 1.0, -1.0)).mean(-1)


@pytest.mark.parametrize("n", [30, 112])
def test_mean_bounds_have_nominal_false_alarms(n: int) -> None:
    bounds = mean_bounds(_scalar_items(n, n), CONFIDENCE, bounded=False)
    low, high = _interval(bounds.upper < 0)
    assert low <= NOMINAL <= high
    assert np.array_equal(bounds.upper < 0, bounds.p_loss < NOMINAL)


@pytest.mark.parametrize("n", [200, 400])
def test_bounded_mean_bounds_have_nominal_false_alarms(n: int) -> None:
    bounds = mean_bounds(_judged_items(n + 1, n), CONFIDENCE, bounded=True)
    low, high = _interval(bounds.upper < 0)
    assert low <= NOMINAL <= high
    assert np.array_equal(bounds.upper < 0, bounds.p_loss < NOMINAL)


def test_loss_of_the_margin_passes_at_the_nominal_rate() -> None:
    margin = 0.5
    passed = mean_bounds(_scalar_items(5, 112, mean=-margin), CONFIDENCE, bounded=False).lower > -margin
    low, high = _interval(passed)
    assert low <= NOMINAL <= high


def test_bounded_loss_of_the_margin_passes_at_the_rate() -> None:
    margin = 0.05
    differences = _judged_items(6, 300, loss=margin)
    assert differences.mean() == pytest.approx(-margin, abs=0.003)
    low, high = _interval(mean_bounds(differences, CONFIDENCE, bounded=True).lower > -margin)
    assert low <= NOMINAL <= high


def test_items_needed_gives_the_published_example() -> None:
    assert items_needed(2.1, 0.5, confidence=0.95, power=0.8) == 110
    # Rounded quantiles, 1.645 and 0.842, give 109.05 and 436.2: the same to within one item.
    assert items_needed(2.1, 0.25, confidence=0.95, power=0.8) == 437


@pytest.mark.parametrize("deviation", [0.0, 0.1, 0.35])
def test_bounded_items_needed_is_where_the_bound_passes(deviation: float) -> None:
    # Half of the power: a mean of exactly 0 passes or fails by the bound alone.
    needed = items_needed(deviation, 0.05, confidence=CONFIDENCE, power=0.5, bounded=True)

    def passes(n: int) -> bool:
        changed = np.zeros(n)
        changed[:2] = deviation * math.sqrt(n / 2) * np.array([1.0, -1.0])
        return bool(mean_bounds(changed, CONFIDENCE, bounded=True).lower > -0.05)

    assert passes(needed + 1)
    assert not passes(needed - 1)


@pytest.mark.parametrize("wanted", [0.5, 0.8, 0.95])
def test_power_at_the_margin_matches_the_formula(wanted: float) -> None:
    margin, n = 0.5, 200
    differences = _scalar_items(11, n)
    deviation = margin * math.sqrt(n) / (NormalDist().inv_cdf(CONFIDENCE) + NormalDist().inv_cdf(wanted))
    differences *= deviation / math.sqrt(2.1**2 * 0.5 + 2.1**2 / 2)
    assert items_needed(deviation, margin, confidence=CONFIDENCE, power=wanted) in (n, n + 1)
    low, high = _interval(mean_bounds(differences, CONFIDENCE, bounded=False).lower > -margin)
    assert low <= wanted <= high


def test_bounded_power_matches_the_formula() -> None:
    differences = _judged_items(12, 200)
    deviation = float(differences.std(-1).mean())
    low, high = _interval(mean_bounds(differences, CONFIDENCE, bounded=True).lower > -0.05)
    power = NormalDist().cdf(0.05 * math.sqrt(200) / deviation - NormalDist().inv_cdf(CONFIDENCE))
    assert low <= power <= high


def test_a_dozen_agreeing_items_give_wide_bounds() -> None:
    bounds = mean_bounds(np.zeros(12), CONFIDENCE, bounded=True)
    assert bounds.mean == 0
    assert bounds.lower < -0.1
    assert bounds.upper > 0.1


@pytest.mark.filterwarnings("error")
def test_equal_differences_have_no_spread() -> None:
    bounds = mean_bounds(np.full(40, -0.2), CONFIDENCE, bounded=False)
    assert bounds.lower == bounds.upper == pytest.approx(-0.2)
    assert bounds.p_loss == 0
    assert mean_bounds(np.zeros(40), CONFIDENCE, bounded=False).p_loss == pytest.approx(0.5)


def test_one_item_has_no_bound() -> None:
    with pytest.raises(ValueError, match=r"^a bound needs at least two items"):
        mean_bounds(np.zeros(1), CONFIDENCE, bounded=False)


def test_holm_keeps_the_family_wise_error_rate() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    rng = np.random.default_rng(3)
    alarms = np.array([min(holm(list(rng.uniform(size=3)))) < NOMINAL for _ in range(VERIFICATIONS)])
    low, high = _interval(alarms)
    assert low <= 1 - (1 - NOMINAL / 3) ** 3 <= high


@pytest.mark.parametrize("quantile", [0.5, 0.9])
def test_quantile_bounds_hold_for_any_distribution(quantile: float) -> None:
    rng = np.random.default_rng(7)
    true = float(np.quantile(rng.lognormal(0, 1, 2_000_000), quantile))
    bounds = [quantile_bounds(rng.lognormal(0, 1, 60), quantile, CONFIDENCE) for _ in range(VERIFICATIONS)]
    for missed in (
        np.array([upper < true for _, _, upper in bounds]),
        np.array([lower > true for _, lower, _ in bounds]),
    ):
        assert missed.mean() > 0.01
        assert _interval(missed)[0] <= NOMINAL


def test_few_items_give_no_bound_of_a_high_quantile() -> None:
    assert quantile_bounds(np.arange(28.0), 0.9, CONFIDENCE)[2] == math.inf
    assert quantile_bounds(np.arange(29.0), 0.9, CONFIDENCE)[2] == 28


def test_ratio_bounds_of_and_by_zero() -> None:
    nothing, something = np.zeros(8), np.linspace(1, 2, 8)
    assert ratio_bounds(nothing, nothing, CONFIDENCE).upper == 0
    assert ratio_bounds(nothing, something, CONFIDENCE).upper == 0
    assert ratio_bounds(something, nothing, CONFIDENCE).lower == math.inf
    same = ratio_bounds(something, something, CONFIDENCE)
    assert same == Ratio(1, 1, 1)
    twisted = ratio_bounds(something, something[::-1], CONFIDENCE)
    assert 0.7 < twisted.lower < 1 < twisted.upper < 1.4
    assert twisted == ratio_bounds(something, something[::-1], CONFIDENCE)


ROWS = np.array([[0.1, -0.2, 0.4, 0.3], [1.0, -1.0, 0.5, -0.75]])


def test_unbounded_bounds_are_those_of_a_t_test() -> None:
    bounds = mean_bounds(ROWS, CONFIDENCE, bounded=False)
    tests = stats.ttest_1samp(ROWS, 0, axis=-1, alternative="less")
    reach = stats.t.ppf(CONFIDENCE, 3) * stats.sem(ROWS, axis=-1)
    assert bounds.mean == pytest.approx(ROWS.mean(-1))
    assert bounds.p_loss == pytest.approx(tests.pvalue)
    assert bounds.lower == pytest.approx(ROWS.mean(-1) - reach)
    assert bounds.upper == pytest.approx(ROWS.mean(-1) + reach)
    assert mean_bounds([0.0, 1.0], CONFIDENCE, bounded=False).upper == pytest.approx(0.5 + stats.t.ppf(0.95, 1) / 2)


def test_bounded_bounds_have_an_item_more_on_each_side() -> None:
    bounds = mean_bounds(ROWS, CONFIDENCE, bounded=True)
    for place, row in enumerate(ROWS):
        added = np.array([*row, 1.0, -1.0])
        error = added.std() / math.sqrt(6)
        assert bounds.mean[place] == pytest.approx(row.mean())
        assert bounds.p_loss[place] == pytest.approx(stats.norm.cdf(added.mean() / error))
        assert bounds.lower[place] == pytest.approx(added.mean() - stats.norm.ppf(CONFIDENCE) * error)
        assert bounds.upper[place] == pytest.approx(added.mean() + stats.norm.ppf(CONFIDENCE) * error)


@pytest.mark.parametrize("margin", [0.05, 0.3])
@pytest.mark.parametrize("deviation", [0.0, 0.1, 0.35, 0.9])
def test_bounded_items_needed_solves_its_equation(deviation: float, margin: float) -> None:
    reach = (stats.norm.ppf(CONFIDENCE) + stats.norm.ppf(0.8)) / margin
    enough = (n for n in range(2, 5000) if (n + 2) ** 2 >= reach**2 * (n * deviation**2 + 2))
    assert items_needed(deviation, margin, confidence=CONFIDENCE, power=0.8, bounded=True) == next(enough)


@pytest.mark.parametrize("bounded", [False, True])
def test_wide_margin_still_needs_two_items(bounded: bool) -> None:
    assert items_needed(0.0, 10.0, confidence=CONFIDENCE, power=0.8, bounded=bounded) == 2


def test_holm_is_a_probability() -> None:
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_quantile_bounds_are_order_statistics() -> None:
    inf = math.inf
    assert quantile_bounds(range(20)[::-1], 0.5, CONFIDENCE) == (9.0, 5.0, 14.0)
    assert quantile_bounds(range(5), 0.5, CONFIDENCE) == (2.0, 0.0, 4.0)
    assert quantile_bounds(range(4), 0.5, CONFIDENCE) == (1.0, -inf, inf)


@pytest.mark.filterwarnings("error")
def test_ratios_of_distances_that_are_zero() -> None:
    inf = math.inf
    assert divided([0.0, 0.0, 1.0], [0.0, 2.0, 0.0]).tolist() == [0.0, 0.0, inf]
    assert ratio_bounds([0.0, 0.0], [1.0, 0.0], CONFIDENCE) == Ratio(0.0, 0.0, 0.0)
    assert ratio_bounds([1.0, 0.0], [0.0, 0.0], CONFIDENCE) == Ratio(inf, inf, inf)
    assert ratio_bounds([4.0], [2.0], CONFIDENCE) == Ratio(pytest.approx(2.0), 0.0, inf)
    # Of one item 0 / 0 counts as 1, 0 / 1 as a thousandth, 1 / 0 as a thousand.
    logs = np.log([1.0, 1 / 1000, 1000, 3.0, 1 / 1000])
    ratio = ratio_bounds([0.0, 0.0, 1.0, 3.0, 0.0], [0.0, 5.0, 0.0, 1.0, 2.0], CONFIDENCE)
    reach = stats.t.ppf(CONFIDENCE, 4) * stats.sem(logs)
    assert ratio.value == pytest.approx(math.exp(logs.mean()))
    assert (ratio.lower, ratio.upper) == pytest.approx((math.exp(logs.mean() - reach), math.exp(logs.mean() + reach)))


def test_two_items_bound_a_ratio() -> None:
    logs = np.log([2.0, 3.0])
    reach = stats.t.ppf(CONFIDENCE, 1) * stats.sem(logs)
    assert ratio_bounds([2.0, 3.0], [1.0, 1.0], CONFIDENCE).upper == pytest.approx(math.exp(logs.mean() + reach))


def test_outputs_of_an_item_are_compared_one_with_one() -> None:
    """The first item's outputs are twice as far each, though its first output is a hundred times as far as its second;
    the second item's are three times as far."""
    ratio = ratio_bounds([[200.0, 2.0], [3.0, 30.0]], [[100.0, 1.0], [1.0, 10.0]], CONFIDENCE)
    assert ratio == ratio_bounds([2.0, 3.0], [1.0, 1.0], CONFIDENCE)
    crossed = ratio_bounds([[200.0, 2.0]], [[1.0, 100.0]], CONFIDENCE)
    assert crossed.value == pytest.approx(2.0)


def test_item_with_an_output_that_is_not_apart_has_the_ratio_of_its_means() -> None:
    """As an arm has that leaves half of the outputs as they were, and one of which an output failed."""
    assert ratio_bounds([[0.0, 8.0]], [[1.0, 1.0]], CONFIDENCE).value == pytest.approx(4.0)
    assert ratio_bounds([[4.0, 4.0]], [[0.0, 2.0]], CONFIDENCE).value == pytest.approx(4.0)
    assert ratio_bounds([[4.0, 8.0]], [[2.0]], CONFIDENCE).value == pytest.approx(3.0)
