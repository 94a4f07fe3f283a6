"""Means, ratios, proportions and the bootstrap, against published values, a second implementation and simulations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from kontext_fast.stats.intervals import (
    MIN_ITEMS,
    Estimate,
    acceptance,
    bootstrap_mean,
    card_values,
    exponential_of,
    mean_estimate,
    paired_difference,
    process_value,
    ratio_interval,
    summarize,
    unpaired_log_ratio,
    welch_error,
    wilson,
)


def test_process_value_weighs_items_equally() -> None:
    assert process_value({"a": [1.0, 1.0, 1.0, 1.0], "b": [3.0]}) == 2.0


@pytest.mark.parametrize("values", [{}, {"a": []}])
def test_process_without_values_is_an_error(values: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match=r"^a process value needs at least one"):
        process_value(values)


def test_mean_interval_matches_a_worked_example() -> None:
    # mean 2, sd 1, n 3, t(2, 0.975) = 4.302653: half width 4.302653 / sqrt(3) = 2.484138
    estimate = mean_estimate([1.0, 2.0, 3.0])
    assert estimate.value == 2.0
    assert estimate.interval == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)
    assert estimate.n == 3


def test_one_process_gives_no_interval() -> None:
    summary = summarize([1.5])
    assert summary.mean.value == 1.5
    assert summary.mean.interval is None
    assert not summary.mean.excludes_one


def test_nothing_has_no_summary() -> None:
    with pytest.raises(ValueError, match=r"^there is nothing to summarize$"):
        summarize([])


def test_summary_keeps_every_value() -> None:
    values = [1.0, 1.0, 1.0, 1.0, 1000.0]
    summary = summarize(values)
    assert summary.values == tuple(values)
    assert summary.mean.value == pytest.approx(200.8)
    assert summary.median == 1.0


def test_mean_interval_covers_when_processes_differ() -> None:
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


def blocks_of_cards(random: np.random.Generator, cards: int) -> tuple[list[float], list[int]]:
    """Three blocks on each card, of which some are missing, and the card of each; cards differ as much as blocks do."""
    values = random.standard_normal((cards, 1)) + random.standard_normal((cards, 3))
    kept = [(card, block) for card in range(cards) for block in range(3 - card % 2)]
    return [float(values[place]) for place in kept], [card for card, _ in kept]


@pytest.mark.parametrize("cards", [3, 5])
def test_interval_over_cards_covers_and_over_blocks_does_not(cards: int) -> None:
    random = np.random.default_rng(cards)
    covered = of_blocks = 0
    for _ in range(2000):
        values, of = blocks_of_cards(random, cards)
        for estimate in (mean_estimate(values, of), mean_estimate(values)):
            low, high = estimate.interval or (0, 0)
            covered += low <= 0 <= high and estimate.cards is not None
            of_blocks += low <= 0 <= high and estimate.cards is None
    assert 0.93 <= covered / 2000 <= 0.97
    assert of_blocks / 2000 < 0.88


def test_interval_of_two_cards_covers_these_and_says_so() -> None:
    """What a report says of it: further runs on the same cards are covered, other cards are not."""
    random = np.random.default_rng(2)
    same = others = 0
    for _ in range(2000):
        offsets = random.standard_normal((2, 1))
        values = list((offsets + random.standard_normal((2, 3))).ravel())
        estimate = mean_estimate(values, [0, 0, 0, 1, 1, 1])
        assert (estimate.n, estimate.cards) == (6, 2)
        low, high = estimate.interval or (0, 0)
        same += low <= offsets.mean() <= high
        others += low <= 0 <= high
    assert same / 2000 >= 0.95
    assert others / 2000 < 0.88


def test_cards_are_the_units_from_three_on() -> None:
    values = [1.0, 2.0, 4.0, 9.0]
    assert card_values(values, []) == card_values(values, "aabb") == values
    assert card_values(values, "abca") == [5.0, 2.0, 4.0]
    assert mean_estimate(values, "abca") == replace(mean_estimate([5.0, 2.0, 4.0]), cards=3)
    ratio = ratio_interval({0: 2.0, 1: 4.0, 2: 8.0, 3: 2.0}, dict.fromkeys(range(4), 1.0), dict(enumerate("abca")))
    assert ratio is not None
    assert (ratio.n, ratio.cards) == (3, 3)
    assert ratio.value == pytest.approx(4.0)
    assert summarize(values, "abca").values == tuple(values)
    assert summarize(values, "abca").mean.cards == 3
    assert mean_estimate([1.0, 2.0], "ab") == Estimate(1.5, None, 2, 2)
    with pytest.raises(ValueError, match="zip"):
        card_values(values, "ab")


def test_bootstrap_needs_30_items_and_is_repeatable() -> None:
    values = list(np.random.default_rng(0).gamma(2.0, size=30))
    assert bootstrap_mean(values[1:]).interval is None
    estimate = bootstrap_mean(values)
    interval = estimate.interval
    assert interval is not None
    assert (estimate.value, estimate.n) == (pytest.approx(np.mean(values)), 30)
    assert bootstrap_mean(values[1:]) == Estimate(pytest.approx(np.mean(values[1:])), None, 29)
    assert interval[0] < np.mean(values) < interval[1]
    assert bootstrap_mean(values) == bootstrap_mean(values, seed=0) != bootstrap_mean(values, seed=1)
    assert bootstrap_mean([3.0] * 30) == Estimate(3.0, (3.0, 3.0), 30)
    with pytest.raises(ValueError, match=r"^there is nothing to resample"):
        bootstrap_mean([])


def simulate(rng: np.random.Generator, factor: float, rounds: int) -> tuple[dict[int, float], dict[int, float]]:
    """Log-normal processes; a round's processes share an effect larger than their own noise."""
    shared = rng.normal(0, 0.10, size=rounds)
    own = rng.normal(0, 0.03, size=(2, rounds))
    baseline = np.exp(shared + own[0])
    other = np.exp(shared + own[1]) / factor
    return dict(enumerate(baseline)), dict(enumerate(other))


@pytest.mark.parametrize("rounds", [3, 5, 10])
def test_ratio_interval_has_its_nominal_coverage(rounds: int) -> None:
    rng = np.random.default_rng(rounds)
    hits = 0
    for _ in range(2000):
        estimate = ratio_interval(*simulate(rng, 1.6, rounds))
        assert estimate is not None
        assert estimate.interval is not None
        hits += estimate.interval[0] <= 1.6 <= estimate.interval[1]
    assert 0.93 <= hits / 2000 <= 0.97


def test_ratio_interval_of_equals_excludes_one_in_5_percent() -> None:
    rng = np.random.default_rng(7)
    estimates = [ratio_interval(*simulate(rng, 1.0, 5)) for _ in range(2000)]
    alarms = sum(estimate is not None and estimate.excludes_one for estimate in estimates)
    assert 0.03 <= alarms / 2000 <= 0.07


def test_pairing_by_round_removes_shared_effects() -> None:
    baseline = {1: 1.0, 2: 5.0, 3: 0.2}
    estimate = ratio_interval(baseline, {round_: value / 2 for round_, value in baseline.items()})
    assert estimate is not None
    assert estimate.value == pytest.approx(2.0)
    assert estimate.interval == pytest.approx((2.0, 2.0))


def test_ratio_is_the_geometric_mean_of_baseline_over_other() -> None:
    estimate = ratio_interval({1: 4.0, 2: 1.0}, {1: 1.0, 2: 1.0})
    assert estimate is not None
    assert estimate.value == pytest.approx(2.0)
    assert estimate.n == 2


def test_two_values_have_no_interval_and_no_claim() -> None:
    assert mean_estimate([0.49, 0.57]).interval is None
    assert mean_estimate([0.49, 0.57, 0.53]).interval is not None
    estimate = ratio_interval({1: 4.0, 2: 4.0}, {1: 2.0, 2: 2.0})
    assert estimate is not None
    assert (estimate.interval, estimate.excludes_one) == (None, False)


def test_swapped_arguments_invert_the_ratio() -> None:
    a, b = simulate(np.random.default_rng(3), 1.3, 4)
    forth, back = ratio_interval(a, b), ratio_interval(b, a)
    assert forth is not None
    assert back is not None
    assert forth.interval is not None
    assert back.interval is not None
    assert math.isclose(forth.value * back.value, 1)
    assert math.isclose(forth.interval[0] * back.interval[1], 1)


def test_ratio_uses_only_shared_rounds() -> None:
    estimate = ratio_interval({1: 2.0, 2: 9.0}, {1: 1.0, 3: 1.0})
    assert estimate is not None
    assert (estimate.value, estimate.interval, estimate.n) == (2.0, None, 1)
    assert ratio_interval({1: 2.0, 2: 9.0}, {1: 1.0, 3: 1.0}, {1: "a", 2: "b", 3: "c"}) == replace(estimate, cards=1)
    assert ratio_interval({1: 1.0}, {2: 1.0}) is None


def test_unpaired_log_ratio_is_welchs() -> None:
    before, after = np.log([1.0, 1.1, 0.95]).tolist(), np.log([1.2, 1.25, 1.19, 1.3]).tolist()
    estimate = unpaired_log_ratio(before, after)
    expected = stats.ttest_ind(after, before, equal_var=False)
    assert estimate is not None
    assert estimate.value == pytest.approx(np.mean(after) - np.mean(before))
    low, high = expected.confidence_interval(0.95)
    assert estimate.interval == pytest.approx((low, high))
    assert estimate.n == 3
    factor = exponential_of(estimate)
    assert factor is not None
    assert factor.value == pytest.approx(math.exp(estimate.value))
    assert factor.interval == pytest.approx((math.exp(low), math.exp(high)))
    assert factor.n == 3


def test_unpaired_log_ratio_of_too_few_values_is_open() -> None:
    assert unpaired_log_ratio([], [1.0]) is None
    assert exponential_of(None) is None
    single = exponential_of(unpaired_log_ratio([0.0], [math.log(2.0), math.log(2.0)]))
    assert single is not None
    assert single.value == pytest.approx(2.0)
    assert single.interval is None
    two = unpaired_log_ratio([0.0, 0.0], [1.0, 1.1, 1.2])
    assert two is not None
    assert two.interval is None
    same = unpaired_log_ratio([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    assert same is not None
    assert same.interval == (1.0, 1.0)
    assert single.n == 1
    assert welch_error([0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]) == (0.0, 2.0)


def test_wilson_matches_published_values() -> None:
    # Newcombe (1998): 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611
    assert wilson(81, 263).interval == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20).interval == pytest.approx((0.0, 0.1611), abs=5e-5)


@pytest.mark.parametrize(("accepted", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_rejects_what_is_no_proportion(accepted: float, n: int) -> None:
    with pytest.raises(ValueError, match="not a proportion"):
        wilson(accepted, n)


@pytest.mark.parametrize("n", [1, 5])
def test_all_accepted_is_a_proportion(n: int) -> None:
    estimate = wilson(n, n)
    assert (estimate.value, estimate.n) == (1.0, n)
    assert estimate.interval is not None
    assert estimate.interval[1] <= 1


def test_wilson_has_its_nominal_coverage() -> None:
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


def test_paired_difference_of_few_items_has_no_interval() -> None:
    few = {str(i): 1.0 for i in range(MIN_ITEMS - 1)}
    estimate = paired_difference(few, few)
    assert estimate is not None
    assert (estimate.value, estimate.interval, estimate.n) == (0.0, None, MIN_ITEMS - 1)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_paired_difference_ends_at_all_or_nothing(sign: float) -> None:
    lost, kept = ({str(i): value for i in range(MIN_ITEMS)} for value in (0.0, 1.0))
    estimate = paired_difference(lost, kept) if sign > 0 else paired_difference(kept, lost)
    assert estimate is not None
    assert (estimate.value, estimate.n) == (sign, MIN_ITEMS)
    adjusted = np.array([sign] * MIN_ITEMS + [1.0, -1.0])
    reach = stats.norm.ppf(0.975) * adjusted.std() / math.sqrt(MIN_ITEMS + 2)
    assert sorted(estimate.interval or ()) == pytest.approx(sorted((sign, adjusted.mean() - sign * reach)))


def test_paired_difference_uses_only_shared_items() -> None:
    estimate = paired_difference({"a": 1.0, "b": 0.0}, {"a": 0.0, "c": 1.0})
    assert estimate is not None
    assert (estimate.value, estimate.n) == (-1.0, 1)
    assert paired_difference({"a": 1.0}, {"b": 1.0}) is None


def test_paired_difference_of_agreeing_items_has_width() -> None:
    same = {str(i): 1.0 for i in range(40)}
    estimate = paired_difference(same, same)
    assert estimate is not None
    assert estimate.interval is not None
    assert estimate.interval[0] < -0.01
    assert estimate.interval[1] > 0.01


@pytest.mark.parametrize(("both", "only_baseline", "only_other"), [(0.80, 0.08, 0.04), (0.60, 0.15, 0.15)])
def test_paired_difference_has_its_nominal_coverage(both: float, only_baseline: float, only_other: float) -> None:
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
