"""What a verdict rests on, from the records of arms: which outputs are compared with which, item by item."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kontext_fast.metrics.base import discover
from kontext_fast.records.schema import Record
from kontext_fast.verify.analysis import BETWEEN_SEEDS, ArmScores, PresetAnalysis, analyze
from kontext_fast.verify.comparisons import FidelityDistances
from kontext_fast.verify.conditions import ConditionEvidence
from kontext_fast.verify.pictures import SEED_SPREAD
from kontext_fast.verify.verdict import Evidence, Level, QualityVerdict
from tests.verify.stored_arms import Key, stored_arm, verification_of

METRICS = [discover()[name] for name in ("latent_error", "judge_kept")]
KEYS: list[Key] = [(item, seed) for item in "ab" for seed in (0, 1)]


def pictures(of: str) -> dict[Key, str | None]:
    return {(item, seed): f"{of}, {item} with seed {seed}" for item, seed in KEYS}


def errors(*values: float, metric: str = "latent_error") -> dict[str, dict[Key, float]]:
    """Of both seeds of item a, then of b."""
    return {metric: dict(zip(KEYS, values, strict=True))}


BASELINE = stored_arm(
    "baseline", "baseline", pictures("baseline"),
    scores=errors(0.41, 0.42, 0.43, 0.44, metric=f"latent_error{BETWEEN_SEEDS}"),
)  # fmt: skip
RERUN = stored_arm("re-run", "floor", pictures("again"), scores=errors(0.001, 0.002, 0.003, 0.004))
FAST = stored_arm("fast", "preset", pictures("fast"), scores=errors(0.01, 0.02, 0.03, 0.04))
REORDERED = stored_arm(
    "fast, other order", "order", pictures("fast"), preset="fast", scores=errors(0.05, 0.06, 0.07, 0.08)
)
BASELINE_ALONE = stored_arm(
    "baseline, one by one", "condition", pictures("alone"), preset="baseline", condition="one by one",
    scores={"latent_error": {("a", 1): 0.3, ("b", 1): 0.5}},
)  # fmt: skip
FAST_ALONE = stored_arm(
    "fast, one by one", "condition", pictures("fast alone"), preset="fast", condition="one by one",
    scores=errors(0.11, 0.12, 0.13, 0.14),
)  # fmt: skip
SLOW_ALONE = stored_arm(
    "slow, one by one", "condition", pictures("slow"), preset="slow", condition="one by one", scores=errors(1, 1, 1, 1)
)


def evidence(*records: Record) -> Evidence:
    return ArmScores(records).evidence("fast", METRICS, {})


def alone(*records: Record) -> ConditionEvidence:
    (condition,) = evidence(*records).conditions
    return condition


def test_condition_is_compared_with_baseline_and_its_seeds_under_it() -> None:
    every_arm = (BASELINE, RERUN, FAST, REORDERED, SLOW_ALONE, BASELINE_ALONE, FAST_ALONE)
    (usual,) = evidence(*every_arm).fidelity
    assert usual == FidelityDistances(
        "latent_error",
        to_baseline={"a": [0.01, 0.02], "b": [0.03, 0.04]},
        floors={"re-run": {"a": [0.001, 0.002], "b": [0.003, 0.004]}},
        between_seeds={"a": [0.41, 0.42], "b": [0.43, 0.44]},
        reordered={"a": [0.05, 0.06], "b": [0.07, 0.08]},
    )
    own = {"a": [0.11, 0.12], "b": [0.13, 0.14]}
    of_condition = alone(*every_arm)
    assert of_condition.name == "one by one"
    assert of_condition.fidelity == (replace(usual, to_baseline=own, between_seeds={"a": [0.3], "b": [0.5]}),)
    # A single seed of baseline has no noise there; what all usual outputs have stands for it.
    one_seed = BASELINE_ALONE.model_copy(update={"scores": ()})
    assert alone(*every_arm[:-2], one_seed, FAST_ALONE).fidelity == (replace(usual, to_baseline=own),)


@pytest.mark.parametrize(
    ("baseline", "fast", "error", "identical"),
    [
        pytest.param("same", "same", 0.0, True, id="same images and latents"),
        pytest.param("same", "other", 0.0, False, id="another image"),
        pytest.param("same", "same", 1e-9, False, id="other latents behind the same images"),
    ],
)
def test_condition_is_identical_by_images_and_latents(baseline: str, fast: str, error: float, identical: bool) -> None:
    of_baseline = stored_arm(
        "baseline, one by one", "condition", pictures(baseline), preset="baseline", condition="one by one"
    )
    of_fast = stored_arm(
        "fast, one by one", "condition", pictures(fast), preset="fast", condition="one by one",
        scores=errors(0.0, 0.0, 0.0, error),
    )  # fmt: skip
    assert alone(BASELINE, FAST, of_baseline, of_fast).identical is identical


def test_outputs_fail_where_what_they_are_compared_with_succeeded_at_once() -> None:
    """An output at the second attempt is a failure, too: of the preset it counts, and of baseline it excuses."""
    of_baseline = {("a", 0): "a", ("b", 0): "b", ("c", 0): None, ("d", 0): "d", ("e", 0): "e"}
    of_fast = {("a", 0): None, ("b", 0): None, ("c", 0): None, ("d", 0): "d", ("e", 0): "e"}
    retried, failed = {("b", 0): "Out of memory."}, {("d", 0): "Out of memory."}
    usual = [
        stored_arm("baseline", "baseline", of_baseline, failures=retried),
        stored_arm("fast", "preset", of_fast, failures=failed),
    ]
    found = evidence(
        *usual,
        stored_arm("fast, other order", "order", dict.fromkeys(of_fast), preset="fast"),
        stored_arm(
            "baseline, one by one",
            "condition",
            of_baseline,
            preset="baseline",
            condition="one by one",
            failures=retried,
        ),
        stored_arm("fast, one by one", "condition", of_fast, preset="fast", condition="one by one", failures=failed),
    )
    assert found.failures == found.conditions[0].failures == ("a", "d")
    # In another order all failed; e alone is made at once in its own.
    assert found.reordered_failures == ("e",)
    assert evidence(*usual).reordered_failures == ()


def test_spreads_of_seeds_are_those_of_the_preset() -> None:
    spreads = {SEED_SPREAD: {("a", 1): 0.9, ("b", 1): 0.2}}
    fast = stored_arm("fast", "preset", pictures("fast"), scores=spreads)
    assert evidence(BASELINE, fast).seed_spreads == {"a": [0.9], "b": [0.2]}


def test_verification_that_ended_before_baseline_has_no_verdict() -> None:
    assert ArmScores([]).baseline is None
    assert not evidence(FAST).identical
    assert analyze(verification_of()).presets == ()


def test_preset_without_an_output_is_not_measured_and_others_say_what_they_cover() -> None:
    refused = stored_arm("refused", "preset", {}, status="refused", reason="It needs a GPU.")
    crashed = stored_arm("crashed", "preset", {("a", 0): None}, failures={("a", 0): "Out of memory."})
    fast, *others = analyze(verification_of(BASELINE, FAST, REORDERED, FAST_ALONE, refused, crashed)).presets
    assert fast.coverage.startswith("Covers calls of up to 2 images, another order")
    assert others == [
        PresetAnalysis("refused", QualityVerdict(Level.NOT_MEASURED, "It needs a GPU."), None),
        PresetAnalysis("crashed", QualityVerdict(Level.NOT_MEASURED, "Out of memory."), None),
    ]
