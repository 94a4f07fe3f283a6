"""Planted mistakes are all caught, each under its own name, and what is no mistake is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from kontext_fast.verify.analysis import PresetVerdict, VerificationAnalysis, analyze
from kontext_fast.verify.comparisons import Outcome
from kontext_fast.verify.margins import read_margins
from kontext_fast.verify.request import Request
from kontext_fast.verify.run import verify
from kontext_fast.verify.verdict import Level
from tests.verify import faulty_optimizations as faulty
from tests.verify.fake_edits import write_dataset

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


# Images per call at most: those of one item, and of more than the control items make in one.
@pytest.fixture(scope="module", params=[2, 12])
def found(
    request: pytest.FixtureRequest, dense_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> VerificationAnalysis:
    folder = tmp_path_factory.mktemp("verified")
    margins = read_margins()
    asked = Request(
        presets=tuple(faulty.preset(optimization()) for optimization in PLANTED),
        checkpoint=str(dense_checkpoint),
        dataset=write_dataset(folder / "data", 6),
        control_items=6,
        steps=3,
        batch=request.param,
        margins=margins.model_copy(update={"floor": margins.floor.model_copy(update={"min_items": 6})}),
        device="cpu",
    )
    return analyze(verify(asked, folder / "out"))


def _of(found: VerificationAnalysis, name: str) -> PresetVerdict:
    (one,) = (one for one in found.presets if one.preset == name)
    return one


def test_fidelity_metrics_detect_every_control(found: VerificationAnalysis) -> None:
    assert not set(found.blind) & {"latent_error", "psnr", "ssim"}, found.blind


@pytest.mark.parametrize("name", ["block skipped", "head swapped", "scale off", "cache not reset", "seeds shifted"])
def test_faulty_optimization_is_detected(name: str, found: VerificationAnalysis) -> None:
    one = _of(found, name)
    assert not one.verdict.level.passes
    outcomes = [finding.outcome for finding in one.verdict.floor]
    assert Outcome.FAILED in outcomes, one.verdict
    assert Outcome.PASSED not in outcomes, one.verdict


def test_leaking_cache_depends_on_other_requests(found: VerificationAnalysis) -> None:
    one = _of(found, "cache not reset")
    assert one.verdict.level is Level.LOSS
    assert "depend on other requests" in one.verdict.reason
    for other in ("block skipped", "head swapped", "scale off"):
        assert "other requests" not in _of(found, other).verdict.reason


def test_failing_item_is_a_loss_and_spares_the_others(found: VerificationAnalysis) -> None:
    one = _of(found, "fails on one")
    assert one.verdict.level is Level.LOSS
    assert one.evidence is not None
    assert len(one.evidence.failures) == 1
    assert all(len(fidelity.to_baseline) == 5 for fidelity in one.evidence.fidelity)


def test_failing_call_is_a_loss_even_if_retries_succeed(found: VerificationAnalysis) -> None:
    one = _of(found, "fails once")
    assert one.verdict.level is Level.LOSS
    assert one.evidence is not None
    assert one.evidence.failures


def test_harmless_optimizations_are_identical_or_equivalent(found: VerificationAnalysis) -> None:
    assert _of(found, "untouched").verdict.level is Level.IDENTICAL
    assert _of(found, "rounded").verdict.level is Level.EQUIVALENT
