"""Each rule of a verdict at its limit, so that moving the limit by one fails a test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from kontext_fast.metrics.base import Control
from kontext_fast.metrics.clip_text import ClipText
from kontext_fast.metrics.latent_error import LatentError
from kontext_fast.records.schema import Arm, ArmRole, Output, Record, Score
from kontext_fast.stats.bounds import items_needed, mean_bounds
from kontext_fast.verify.analysis import ArmScores
from kontext_fast.verify.comparisons import (
    ByItem,
    FidelityDistances,
    Outcome,
    QualityDifferences,
    SeedNoiseComparison,
    compare_with_floor,
    compare_with_margins,
    compare_with_seed_noise,
)
from kontext_fast.verify.controls import NO_LOSS_ARMS, sensitivity_checks
from kontext_fast.verify.margins import read_margins
from tests.records.builder import MACHINE, TINY

MARGINS = read_margins()


def by_item(values: Sequence[float]) -> ByItem:
    return {f"item {index:03d}": (float(value),) for index, value in enumerate(values)}


@pytest.mark.parametrize(("n", "outcome"), [(29, Outcome.UNDECIDED), (30, Outcome.PASSED)])
def test_margin_is_decided_from_thirty_items_on(n: int, outcome: Outcome) -> None:
    clip = QualityDifferences("clip_text", by_item([0.0, 0.01] * (n // 2) + [0.0] * (n % 2)), bounded=False)
    (comparison,) = compare_with_margins([clip], MARGINS)
    assert (comparison.n, comparison.outcome) == (n, outcome)


@pytest.mark.parametrize(("n", "outcome"), [(7, Outcome.UNDECIDED), (8, Outcome.PASSED)])
def test_floor_is_decided_from_eight_items_on(n: int, outcome: Outcome) -> None:
    fidelity = FidelityDistances("ssim", by_item([0.01] * n), {"other precision": by_item([0.01] * n)})
    comparison = compare_with_floor(fidelity, fidelity.to_baseline, MARGINS)
    assert comparison is not None
    assert comparison.outcome is outcome
    assert comparison.worst == 1.0


def test_floor_takes_the_farthest_arm_and_the_items_of_both() -> None:
    floors = {"empty": {}, "near": by_item([0.001] * 8), "far": by_item([0.01])}
    fidelity = FidelityDistances("ssim", {**by_item([0.02] * 8), "item 000": (), "other": (1.0,)}, floors)
    assert compare_with_floor(fidelity, fidelity.to_baseline, MARGINS) is None
    comparison = compare_with_floor(fidelity, by_item([0.02] * 8), MARGINS)
    assert comparison is not None
    assert (comparison.arm, comparison.n, comparison.worst) == ("far", 1, 2.0)


def test_median_and_mean_must_both_be_within_the_floor() -> None:
    floor = {"other precision": by_item([0.01] * 16)}
    # Eleven items are twice as far, the others much closer: the mean is fine, the median is not.
    median_far = FidelityDistances("ssim", by_item([0.02] * 11 + [0.0005] * 5), floor)
    comparison = compare_with_floor(median_far, median_far.to_baseline, MARGINS)
    assert comparison is not None
    assert comparison.ratio.value < 1 < 1.9 < comparison.median_ratio.value
    assert comparison.outcome is not Outcome.PASSED
    # A few items are very far: the median is fine, the mean is not.
    mean_far = FidelityDistances("ssim", by_item([0.01] * 12 + [0.029] * 4), floor)
    comparison = compare_with_floor(mean_far, mean_far.to_baseline, MARGINS)
    assert comparison is not None
    assert comparison.median_ratio.upper <= 1.5 < comparison.ratio.upper
    assert comparison.outcome is not Outcome.PASSED


def test_items_with_values_on_one_side_are_not_compared() -> None:
    floor = by_item([0.1] * 4)
    fidelity = FidelityDistances("latent_error", {**by_item([0.1] * 3), "item 003": ()}, {"re-run": floor})
    comparison = compare_with_floor(fidelity, fidelity.to_baseline, read_margins())
    assert comparison is not None
    assert (comparison.n, comparison.ratio.value) == (3, pytest.approx(1.0))


@pytest.mark.parametrize(("farther", "detected"), [(4, False), (5, True)])
def test_sign_test_needs_five_of_five(farther: int, detected: bool) -> None:
    """Five of five happen by chance in 3 % of cases, four of five or more in 19 %."""
    fidelity = FidelityDistances("latent_error", {}, {"re-run": by_item([0.1] * 5)})
    control = by_item([0.2] * farther + [0.05] * (5 - farther))
    checks = sensitivity_checks(
        LatentError, MARGINS, fidelity=fidelity, distances=dict.fromkeys(Control, control), differences={}
    )
    assert {check.detected for check in checks} == {detected}
    assert {check.control for check in checks} == {control.value for control in LatentError.must_detect}


def test_quality_control_is_a_loss_and_not_a_gain() -> None:
    def checks(change: float) -> dict[str, bool | None]:
        values = by_item([change, change * 1.01, change * 0.99, change])
        arms = [*Control, *NO_LOSS_ARMS]
        found = sensitivity_checks(
            ClipText, MARGINS, fidelity=None, distances={}, differences={str(arm): values for arm in arms}
        )
        return {check.control: check.detected for check in found}

    worse, better = checks(-1.0), checks(1.0)
    assert set(worse) == {*(control.value for control in ClipText.must_detect), *NO_LOSS_ARMS}
    assert set(worse.values()) == {True}
    assert set(better.values()) == {False}
    # Less than the margin is tolerated in what is no loss, and is one in what is.
    small = checks(-0.4)
    assert {small[arm] for arm in NO_LOSS_ARMS} == {False}
    assert {small[control.value] for control in ClipText.must_detect} == {True}


def arm(name: str, role: ArmRole, images: str, latent_errors: Sequence[float] = (), of: str | None = None) -> Record:
    """Two items with two seeds; `images` has a letter for each output."""
    keys = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    outputs = tuple(
        Output(item=item, seed=seed, image=letter * 64) for (item, seed), letter in zip(keys, images, strict=True)
    )
    return Record(
        run_id=name,
        created_at="2001-02-03T04:05:06+00:00",
        preset=of or name,
        plan=(),
        checkpoint=TINY,
        environment=MACHINE,
        round=0,
        order=0,
        status="ok",
        arm=Arm(name=name, role=role, preset=of),
        outputs=outputs,
        scores=tuple(
            Score(item=item, seed=seed, image="a" * 64, metric="latent_error", value=value)
            for (item, seed), value in zip(keys, latent_errors, strict=False)
        ),
    )


def identical(baseline: str, preset: str, latent_errors: Sequence[float] = ()) -> bool:
    scores = ArmScores([arm("baseline", "baseline", baseline), arm("fast", "preset", preset, latent_errors)])
    return scores.evidence("fast", [], {}).identical


def test_identical_needs_equal_latents_and_seeds_that_differ() -> None:
    assert identical("abcd", "abcd")
    assert identical("abcd", "abcd", [0.0] * 4)
    assert not identical("abcd", "abcd", [0.0, 0.0, 1e-9, 0.0])
    assert not identical("abcd", "abce")
    # A pipeline that ignores its seeds shows nothing.
    assert not identical("aabb", "aabb")
    assert identical("aabc", "aabc")


def test_distances_in_another_order_are_those_of_the_preset() -> None:
    scores = ArmScores(
        [
            arm("baseline", "baseline", "abcd"),
            arm("fast", "preset", "abcd", [0.1] * 4),
            arm("fast, other order", "order", "abcd", [0.3] * 4, of="fast"),
            arm("turbo, other order", "order", "abcd", [0.5] * 4, of="turbo"),
        ]
    )
    fidelity = scores.fidelity(LatentError, "fast")
    assert fidelity.to_baseline == {"a": [0.1, 0.1], "b": [0.1, 0.1]}
    assert fidelity.reordered == {"a": [0.3, 0.3], "b": [0.3, 0.3]}
    assert scores.fidelity(LatentError).reordered == {}


def test_inert_control_changed_no_output_at_all() -> None:
    records = [arm("baseline", "baseline", "abcd"), arm("same", "control", "abcd"), arm("other", "control", "abce")]
    assert ArmScores(records).inert_controls() == {"same"}


def seed_noise(distance: float, n: int = 100) -> SeedNoiseComparison:
    """Two seeds are 1 apart."""
    fidelity = FidelityDistances("ssim", by_item([distance] * n), {}, by_item([1.0] * n))
    comparison = compare_with_seed_noise(fidelity, MARGINS)
    assert comparison is not None
    return comparison


def test_seed_noise_is_decided_by_bounds_below_its_limits() -> None:
    assert MARGINS.seed_noise.median == 0.5
    comparison = seed_noise(0.4)
    assert comparison.outcome is Outcome.PASSED
    assert (comparison.median, comparison.median_upper, comparison.p90, comparison.p90_upper) == (0.4,) * 4
    assert seed_noise(0.6).outcome is Outcome.FAILED
    # At the limit it is neither.
    assert seed_noise(0.5).outcome is Outcome.UNDECIDED
    few = seed_noise(0.4, n=6)
    assert (few.outcome, few.p90_upper) == (Outcome.UNDECIDED, float("inf"))


def test_margin_of_answers_counts_the_two_added_items() -> None:
    losses = by_item([-1.0] * 4 + [0.0] * 96)
    answers, scores = (
        compare_with_margins([QualityDifferences("judge_kept", losses, bounded=bounded)], MARGINS)[0]
        for bounded in (True, False)
    )
    deviation = float(np.std([-1.0] * 4 + [0.0] * 96, ddof=1))
    for comparison, bounded in ((answers, True), (scores, False)):
        bounds = mean_bounds([-1.0] * 4 + [0.0] * 96, MARGINS.confidence, bounded=bounded)
        assert (comparison.lower, comparison.upper) == (float(bounds.lower), float(bounds.upper))
        expected = items_needed(deviation, 0.05, confidence=MARGINS.confidence, power=MARGINS.power, bounded=bounded)
        assert comparison.needed == max(expected, MARGINS.min_items)
    assert answers.needed > scores.needed
