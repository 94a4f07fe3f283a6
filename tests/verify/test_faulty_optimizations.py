"""Planted mistakes are all caught, each under its own name, and what is no mistake is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from kontext_fast.verify.analysis import PresetAnalysis, VerificationAnalysis, analyze
from kontext_fast.verify.comparisons import Outcome
from kontext_fast.verify.margins import read_margins
from kontext_fast.verify.request import Request
from kontext_fast.verify.run import verify
from kontext_fast.verify.verdict import Level
from research.faults.catalogue import named
from tests.verify import faulty_optimizations as faulty
from tests.verify.fake_edits import write_dataset

pytestmark = pytest.mark.usefixtures("one_item_per_condition")

PLANTED = (
    faulty.BlockSkipped,
    faulty.HeadSwapped,
    faulty.ScaleOff,
    faulty.CacheNotReset,
    faulty.SeedsShifted,
    faulty.FailsOnOne,
    faulty.FailsOnce,
    faulty.Untouched,
    faulty.Rounded,
)

SINGLE = {
    "unedited input, 1 in 10": "is the input",
    "picture of another request, 1 in 10": "output for",
    "black picture, 1 in 10": "is one color",
    "seed ignored": "is its own output for seed 0",
}
"""Faults that a single output shows, and what the verdict says of it."""


# Images per call at most: those of one item, as in the tests of runs, and of more than the control items of one call.
@pytest.fixture(scope="module", params=[pytest.param(2, marks=pytest.mark.slow), 12])
def analysis(
    request: pytest.FixtureRequest, dense_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> VerificationAnalysis:
    folder = tmp_path_factory.mktemp("verified")
    margins = read_margins()
    verification = Request(
        presets=tuple(faulty.preset(optimization()) for optimization in PLANTED),
        checkpoint=str(dense_checkpoint),
        dataset=write_dataset(folder / "data", 6),
        control_items=6,
        steps=3,
        batch=request.param,
        margins=margins.model_copy(update={"floor": margins.floor.model_copy(update={"min_items": 6})}),
        device="cpu",
    )
    return analyze(verify(verification, folder / "out"))


def _of(analysis: VerificationAnalysis, name: str) -> PresetAnalysis:
    (preset,) = (preset for preset in analysis.presets if preset.preset == name)
    return preset


def test_fidelity_metrics_detect_every_control(analysis: VerificationAnalysis) -> None:
    assert not set(analysis.insensitive) & {"latent_error", "psnr", "ssim"}, analysis.insensitive


@pytest.mark.parametrize("name", ["block skipped", "head swapped", "scale off", "cache not reset", "seeds shifted"])
def test_faulty_optimization_is_detected(name: str, analysis: VerificationAnalysis) -> None:
    preset = _of(analysis, name)
    assert not preset.verdict.level.passes
    outcomes = [comparison.outcome for comparison in preset.verdict.floor]
    assert Outcome.FAILED in outcomes, preset.verdict
    assert Outcome.PASSED not in outcomes, preset.verdict


def test_leaking_cache_depends_on_other_requests(analysis: VerificationAnalysis) -> None:
    preset = _of(analysis, "cache not reset")
    assert preset.verdict.level is Level.LOSS
    assert "depend on other requests" in preset.verdict.reason
    for other in ("block skipped", "head swapped", "scale off"):
        assert "other requests" not in _of(analysis, other).verdict.reason


def test_failing_item_is_a_loss_and_spares_the_others(analysis: VerificationAnalysis) -> None:
    preset = _of(analysis, "fails on one")
    assert preset.verdict.level is Level.LOSS
    assert preset.evidence is not None
    assert len(preset.evidence.failures) == 1
    assert all(len(fidelity.to_baseline) == 5 for fidelity in preset.evidence.fidelity)


def test_failing_call_is_a_loss_even_if_retries_succeed(analysis: VerificationAnalysis) -> None:
    preset = _of(analysis, "fails once")
    assert preset.verdict.level is Level.LOSS
    assert preset.evidence is not None
    assert preset.evidence.failures


def test_harmless_optimizations_are_identical_or_equivalent(analysis: VerificationAnalysis) -> None:
    assert _of(analysis, "untouched").verdict.level is Level.IDENTICAL
    assert _of(analysis, "rounded").verdict.level is Level.EQUIVALENT


@pytest.fixture(scope="module")
def single_outputs(dense_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> VerificationAnalysis:
    folder = tmp_path_factory.mktemp("single")
    verification = Request(
        presets=(faulty.preset(faulty.ScaleOff()), *(named(name).preset for name in SINGLE)),
        checkpoint=str(dense_checkpoint),
        dataset=write_dataset(folder / "data", 6),
        control_items=2,
        steps=2,
        device="cpu",
    )
    return analyze(verify(verification, folder / "out"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SINGLE)
def test_fault_of_single_outputs_is_named(name: str, single_outputs: VerificationAnalysis) -> None:
    preset = _of(single_outputs, name)
    assert preset.verdict.level is Level.LOSS
    assert SINGLE[name] in preset.verdict.reason or "depend on other requests" in preset.verdict.reason
    assert preset.evidence is not None
    assert any(SINGLE[name].removeprefix("is ") in repeat.what for repeat in preset.evidence.repeats)


@pytest.mark.slow
def test_worse_outputs_of_their_own_are_no_repeats(single_outputs: VerificationAnalysis) -> None:
    evidence = _of(single_outputs, "scale off").evidence
    assert evidence is not None
    assert evidence.repeats == ()
