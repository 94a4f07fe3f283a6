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
from tests.verify import broken
from tests.verify.edits import write_dataset

PLANTED = (
    broken.BlockSkipped,
    broken.HeadSwapped,
    broken.ScaleOff,
    broken.CacheNotReset,
    broken.SeedsShifted,
    broken.FailsOnOne,
    broken.FailsOnce,
    broken.Untouched,
    broken.Rounded,
)


# Images per call at most: those of one item, and of more than the control items make in one.
@pytest.fixture(scope="module", params=[2, 12])
def found(
    request: pytest.FixtureRequest, lively: Path, tmp_path_factory: pytest.TempPathFactory
) -> VerificationAnalysis:
    folder = tmp_path_factory.mktemp("verified")
    margins = read_margins()
    asked = Request(
        presets=tuple(broken.preset(optimization()) for optimization in PLANTED),
        checkpoint=str(lively),
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


def test_the_metrics_of_fidelity_see_every_control(found: VerificationAnalysis) -> None:
    assert not set(found.blind) & {"latent_error", "psnr", "ssim"}, found.blind


@pytest.mark.parametrize("name", ["block skipped", "head swapped", "scale off", "cache not reset", "seeds shifted"])
def test_a_broken_optimization_is_caught_by_name(name: str, found: VerificationAnalysis) -> None:
    one = _of(found, name)
    assert not one.verdict.level.passes
    outcomes = [finding.outcome for finding in one.verdict.floor]
    assert Outcome.FAILED in outcomes, one.verdict
    assert Outcome.PASSED not in outcomes, one.verdict


def test_the_cache_that_leaks_is_caught_as_depending_on_other_requests(found: VerificationAnalysis) -> None:
    one = _of(found, "cache not reset")
    assert one.verdict.level is Level.LOSS
    assert "depend on other requests" in one.verdict.reason
    for other in ("block skipped", "head swapped", "scale off"):
        assert "other requests" not in _of(found, other).verdict.reason


def test_an_item_that_fails_midway_is_a_loss_and_leaves_the_others(found: VerificationAnalysis) -> None:
    one = _of(found, "fails on one")
    assert one.verdict.level is Level.LOSS
    assert one.evidence is not None
    assert len(one.evidence.failures) == 1
    assert all(len(fidelity.to_baseline) == 5 for fidelity in one.evidence.fidelity)


def test_a_call_that_fails_is_a_loss_even_if_its_items_succeed_alone(found: VerificationAnalysis) -> None:
    one = _of(found, "fails once")
    assert one.verdict.level is Level.LOSS
    assert one.evidence is not None
    assert one.evidence.failures


def test_what_changes_nothing_is_identical_and_what_only_rounds_is_equivalent(found: VerificationAnalysis) -> None:
    assert _of(found, "untouched").verdict.level is Level.IDENTICAL
    assert _of(found, "rounded").verdict.level is Level.EQUIVALENT
