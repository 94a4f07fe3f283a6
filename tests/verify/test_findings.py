"""Rules for single outputs and for seeds, at their limits, on synthetic distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, ttest_1samp

from kontext_fast.stats.bounds import Ratio
from kontext_fast.stats.intervals import Estimate, mean_estimate
from kontext_fast.verify.comparisons import ByItem, FidelityDistances, FloorComparison, Outcome, QualityDifferences
from kontext_fast.verify.findings import (
    Repeat,
    SignedChange,
    Tail,
    changes_sentence,
    compare_tail,
    contradiction,
    ignored_seeds,
    repeats_sentence,
    signed_change,
    signed_changes,
    tail_sentence,
)
from kontext_fast.verify.margins import read_margins
from kontext_fast.verify.verdict import Evidence, Level, decide

MARGINS = read_margins()
ITEMS = 100


def by_item(values: Sequence[float], seeds: int = 1) -> ByItem:
    return {f"item {index:03d}": (float(value),) * seeds for index, value in enumerate(values)}


def distances(to_baseline: ByItem, metric: str = "latent_error") -> FidelityDistances:
    """Two seeds are 0.4 apart, and rounding is 0.01."""
    floors = {"re-run": by_item([0.0] * 16, 2), "other precision": by_item([0.01] * 16, 2)}
    return FidelityDistances(metric, to_baseline, floors, between_seeds=by_item([0.4] * ITEMS))


def far_outputs(count: int, distance: float = 0.9) -> FidelityDistances:
    """`count` of 200 outputs are far from baseline, each of an item of its own."""
    values = {item: list(of_item) for item, of_item in by_item([0.05] * ITEMS, 2).items()}
    for item in sorted(values)[:count]:
        values[item][0] = distance
    return distances(values)


def answers() -> tuple[QualityDifferences, ...]:
    """No loss, but a little change."""
    values = [0.0] * (ITEMS - 2) + [1.0, -1.0]
    return tuple(QualityDifferences(name, by_item(values), bounded=True) for name in ("judge_done", "judge_kept"))


def test_tail_has_the_p_value_of_the_binomial() -> None:
    tail = compare_tail(far_outputs(4), MARGINS)
    assert tail is not None
    assert (len(tail.beyond), tail.n, tail.rate) == (4, 200, 0.005)
    assert tail.p_value == pytest.approx(1 - binom.cdf(3, 200, 0.005))
    assert tail.beyond == ("item 000", "item 001", "item 002", "item 003")


def test_few_far_outputs_are_no_fault_and_four_are() -> None:
    for count, found in ((0, False), (1, False), (2, False), (3, False), (4, True), (8, True)):
        tail = compare_tail(far_outputs(count), MARGINS)
        assert tail is not None
        assert (tail_sentence([tail], MARGINS) is not None) is found, count


def test_tail_is_corrected_for_the_number_of_metrics() -> None:
    tail = compare_tail(far_outputs(4), MARGINS)
    assert tail is not None
    assert 0.0167 < tail.p_value < 0.05
    assert tail_sentence([tail, tail], MARGINS) is not None
    assert tail_sentence([tail, tail, tail], MARGINS) is None
    assert tail_sentence([], MARGINS) is None


def test_limit_is_twice_seeds_and_floor_together() -> None:
    for distance, found in ((0.8, 0), (0.819, 0), (0.821, 4)):
        tail = compare_tail(far_outputs(4, distance), MARGINS)
        assert tail is not None
        assert len(tail.beyond) == found


def test_item_whose_rounding_is_large_is_not_beyond() -> None:
    """The floor of its own items counts where it is larger than usual."""
    far = far_outputs(4)
    chaotic = by_item([0.1] * 4 + [0.01] * 12, 2)
    assert tail_of(replace(far, floors={**far.floors, "other attention backend": chaotic})) == 0
    assert tail_of(far) == 4


def tail_of(fidelity: FidelityDistances) -> int:
    tail = compare_tail(fidelity, MARGINS)
    assert tail is not None
    return len(tail.beyond)


def test_rate_is_that_of_the_floor_where_it_is_higher() -> None:
    far = far_outputs(4)
    wild = by_item([0.9] + [0.01] * 15, 2)
    tail = compare_tail(replace(far, floors={"other precision": wild}), MARGINS)
    assert tail is not None
    assert tail.rate == 2 / 32
    assert tail_sentence([tail], MARGINS) is None


def test_tail_needs_seed_noise_of_a_chosen_metric() -> None:
    assert compare_tail(replace(far_outputs(4), between_seeds={}), MARGINS) is None
    assert compare_tail(replace(far_outputs(4), metric="lpips"), MARGINS) is None


def test_tail_turns_a_pass_into_a_loss_and_names_items() -> None:
    assert decide(Evidence(False, (far_outputs(0),), answers()), MARGINS).level is Level.NON_INFERIOR
    verdict = decide(Evidence(False, (far_outputs(4),), answers()), MARGINS)
    assert verdict.level is Level.LOSS
    assert "4 of 200 outputs" in verdict.reason
    assert "item 003" in verdict.reason
    assert len(verdict.tails) == 1


def test_one_repeat_is_a_loss_even_of_equal_outputs() -> None:
    repeat = Repeat("item 001", 1, "the input")
    verdict = decide(Evidence(True, (far_outputs(0),), answers(), repeats=(repeat,)), MARGINS)
    assert verdict.level is Level.LOSS
    assert verdict.reason == (
        "1 output is not an edit of the request but another picture: item 001 with seed 1 is the input."
    )
    assert repeats_sentence([repeat] * 5).endswith("; and 2 more.")
    named = "item 001 with seed 1 is the input"
    assert repeats_sentence([repeat] * 3) == (
        f"3 outputs are not an edit of the request but another picture: {named}; {named}; {named}."
    )


def test_ignored_seeds_are_a_loss_from_eight_items_on() -> None:
    spreads = by_item([0.01] * 8)
    assert ignored_seeds(spreads, 0.95) is not None
    assert ignored_seeds(by_item([0.01] * 7), 0.95) is None
    assert ignored_seeds(by_item([1.0] * 100), 0.95) is None
    assert ignored_seeds(by_item([0.3] * 55 + [0.9] * 45), 0.95) is None
    assert ignored_seeds(by_item([0.3] * 70 + [0.9] * 30), 0.95) is not None
    verdict = decide(Evidence(False, (far_outputs(0),), answers(), seed_spreads=spreads), MARGINS)
    assert verdict.level is Level.LOSS
    assert "do not follow their seeds" in verdict.reason


def floor_comparison(lower: float, median_lower: float = 1.0, n: int = 16) -> FloorComparison:
    ratio, middle = Ratio(lower * 1.2, lower, lower * 1.5), Ratio(1.2, median_lower, 1.5)
    return FloorComparison("latent_error", Outcome.FAILED, ratio, middle, 1.0, "other precision", n)


def test_contradiction_needs_a_bound_beyond_the_floor() -> None:
    assert contradiction([floor_comparison(1.4)], MARGINS) is None
    assert contradiction([floor_comparison(1.6)], MARGINS) is not None
    assert contradiction([floor_comparison(1.0, median_lower=1.6)], MARGINS) is not None
    assert contradiction([floor_comparison(1.6, n=7)], MARGINS) is None
    assert contradiction([], MARGINS) is None
    # At the limit, and with the fewest items.
    assert contradiction([floor_comparison(MARGINS.floor.ratio)], MARGINS) is None
    farthest = floor_comparison(1.9, n=MARGINS.floor.min_items)
    assert contradiction([floor_comparison(1.6), farthest, floor_comparison(1.7)], MARGINS) is farthest


def test_preset_that_declares_rounding_may_not_do_more() -> None:
    evidence = Evidence(False, (far_outputs(0),), answers())
    assert decide(evidence, MARGINS).level is Level.NON_INFERIOR
    verdict = decide(replace(evidence, declares_rounding=True), MARGINS)
    assert verdict.level is Level.LOSS
    assert "declares to change rounding only" in verdict.reason
    within = replace(evidence, fidelity=(distances(by_item([0.009] * ITEMS, 2)),), declares_rounding=True)
    assert decide(within, MARGINS).level is Level.EQUIVALENT


def test_signed_changes_say_what_changed() -> None:
    rng = np.random.default_rng(1)
    noise = {name: by_item(rng.normal(0, 2, ITEMS)) for name in ("luminance", "contrast", "chroma")}
    assert changes_sentence(signed_changes(noise, 0.95)) is None
    darker = {**noise, "luminance": by_item(rng.normal(-1.5, 2, ITEMS))}
    changes = {change.direction: change for change in signed_changes(darker, 0.95)}
    assert [name for name, change in changes.items() if change.significant] == ["luminance"]
    low, high = changes["luminance"].estimate.interval or (0, 0)
    assert low < -1.5 < high < 0
    sentence = changes_sentence(list(changes.values()))
    assert sentence is not None
    assert sentence.startswith("On average it changes luminance -1.")


def test_signed_changes_of_noise_are_significant_by_chance_only() -> None:
    rng = np.random.default_rng(2)
    simulations = 400
    alarms = 0
    for _ in range(simulations):
        noise = {str(name): by_item(rng.standard_t(3, 30)) for name in range(13)}
        alarms += any(change.significant for change in signed_changes(noise, 0.95))
    assert 0 < alarms / simulations < 0.07


def test_constant_changes_need_no_spread() -> None:
    (zero,) = signed_changes({"luminance": by_item([0.0] * 5)}, 0.95)
    (one,) = signed_changes({"luminance": by_item([1.0] * 5)}, 0.95)
    assert (zero.significant, one.significant) == (False, True)
    assert signed_changes({"luminance": by_item([1.0])}, 0.95) == ()


def test_largest_change_is_named_first() -> None:
    def change(direction: str, value: float) -> SignedChange:
        return SignedChange(direction, Estimate(value, (value - 0.5, value + 0.5), 30), significant=True)

    said = changes_sentence([change("contrast", 1.0), change("luminance", -3.0), change("chroma", 2.0)])
    assert said == (
        "On average it changes luminance -3.00 (-3.50 to -2.50), chroma +2.00 (+1.50 to +2.50), "
        "contrast +1.00 (+0.50 to +1.50), in levels of 255."
    )


@pytest.mark.parametrize("n", [2, 3, 10])
def test_signed_change_has_the_p_value_of_the_t_test(n: int) -> None:
    values = np.random.default_rng(n).normal(0.5, 1, n)
    found = signed_change("luminance", by_item(values))
    assert found is not None
    change, p_value = found
    assert p_value == pytest.approx(ttest_1samp(values, 0).pvalue)
    assert change.significant is False
    assert signed_change("luminance", by_item([0.0] * 3)) == (replace(change, estimate=mean_estimate([0.0] * 3)), 1.0)


def test_tail_says_what_was_far_and_how_much_is_expected() -> None:
    tail = Tail("ssim", tuple(f"item {index}" for index in range(9)), 200, 0.005, 1e-9)
    assert tail_sentence([tail], MARGINS) == (
        "9 of 200 outputs are more than 2 times as far from baseline in ssim as all noise of their item, where 1 are "
        "expected at most (item 0, item 1, item 2, item 3, item 4, item 5)."
    )
    none = compare_tail(far_outputs(0), MARGINS)
    assert none is not None
    assert (none.metric, none.beyond, none.p_value) == ("latent_error", (), 1.0)
