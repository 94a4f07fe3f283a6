"""Metrics are insensitive if they miss what they must detect, or find a loss where there is none."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest

from kontext_fast.metrics.base import Control
from kontext_fast.metrics.clip_text import ClipText
from kontext_fast.metrics.latent_error import LatentError
from kontext_fast.metrics.shapes_judge import JudgeDone
from kontext_fast.verify.comparisons import ByItem, FidelityDistances
from kontext_fast.verify.controls import NO_LOSS_ARMS, RERUN, degrade, insensitivity, sensitivity_checks
from kontext_fast.verify.margins import read_margins
from tests.metrics.cases import noise

MARGINS = read_margins()


def _items(value: float, n: int = 16) -> ByItem:
    return {f"{index:02d}": (value * (1 + 0.01 * index),) for index in range(n)}


def _of_quality(differences: Mapping[str, ByItem], *, inert: Collection[str] = ()) -> str | None:
    quiet = {name: _items(0.0) for name in NO_LOSS_ARMS}
    return insensitivity(
        sensitivity_checks(
            JudgeDone, MARGINS, fidelity=None, distances={}, differences={**quiet, **differences}, inert=inert
        )
    )


def _of_fidelity(distances: Mapping[str, ByItem], rounding: ByItem | None = None) -> str | None:
    floor = FidelityDistances("latent_error", {}, {RERUN: _items(0.0), "other precision": rounding or _items(0.01)})
    return insensitivity(sensitivity_checks(LatentError, MARGINS, fidelity=floor, distances=distances, differences={}))


DETECTED = {Control.SWAPPED.value: _items(-1.0), Control.UNEDITED.value: _items(-1.0)}


def test_metric_that_detects_all_controls_is_sensitive() -> None:
    assert _of_quality(DETECTED) is None


def test_missed_control_makes_a_metric_insensitive() -> None:
    assert _of_quality({**DETECTED, Control.UNEDITED.value: _items(0.0)}) == "it missed unedited input"
    few = {name: dict(list(values.items())[:1]) for name, values in DETECTED.items()}
    assert _of_quality(few) == "it could not be tested with swapped instructions, unedited input"


def test_loss_in_a_rerun_makes_a_metric_insensitive() -> None:
    assert _of_quality({**DETECTED, RERUN: _items(-1.0)}) == "it found a loss in re-run"
    # A loss by rounding that is within the margin costs no verdict.
    assert _of_quality({**DETECTED, RERUN: _items(-0.5 * MARGINS.primary["judge_done"])}) is None


def test_inert_control_tests_no_metric() -> None:
    only = {Control.SWAPPED.value: _items(-1.0)}
    assert _of_quality(only, inert={"unedited input"}) is None
    assert _of_quality({}, inert={"unedited input", "swapped instructions"}) == "no control had any effect"


def test_detected_distance_exceeds_rounding() -> None:
    far = {name: _items(0.1) for name in ("half the steps", "cache threshold x4", "swapped instructions")}
    assert _of_fidelity(far) is None
    assert _of_fidelity({**far, "half the steps": _items(0.009)}) == "it missed half the steps"
    # One item far from baseline does not detect the control: the others were missed.
    once = {**_items(0.005), "00": (0.06,)}
    assert _of_fidelity({**far, "half the steps": once}) == "it missed half the steps"


def test_item_that_rounding_flips_hides_no_others() -> None:
    far = {name: _items(0.03) for name in ("half the steps", "cache threshold x4", "swapped instructions")}
    flipped = {**_items(0.01), "03": (0.9,)}
    assert _of_fidelity(far, flipped) is None
    # Nine of sixteen items are not significant.
    half = {**_items(0.009), **_items(0.03, 9)}
    assert _of_fidelity({**far, "half the steps": half}, flipped) == "it missed half the steps"


def test_without_a_floor_nothing_is_detected() -> None:
    checks = sensitivity_checks(LatentError, MARGINS, fidelity=None, distances=DETECTED, differences={})
    assert insensitivity(checks) is not None
    assert insensitivity(sensitivity_checks(ClipText, MARGINS, fidelity=None, distances={}, differences={})) is not None


def test_degraded_images_differ_repeatably() -> None:
    picture = noise(1)
    for control in (Control.BLUR, Control.JPEG):
        worse = degrade(picture, control, noise(2))
        assert worse.size == picture.size
        assert worse.tobytes() != picture.tobytes()
        assert worse.tobytes() == degrade(picture, control, noise(2)).tobytes()
    unedited = degrade(picture, Control.UNEDITED, noise(2, (128, 96)))
    assert unedited.tobytes() == noise(2, (128, 96)).resize(picture.size).tobytes()
    with pytest.raises(ValueError, match="half the steps"):
        degrade(picture, Control.HALF_STEPS, noise(2))
