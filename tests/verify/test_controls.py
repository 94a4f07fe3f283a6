"""Metrics are insensitive if they miss what they must detect, or find a loss where there is none."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from io import BytesIO

import pytest
from PIL import Image

from kontext_fast.metrics.base import Control
from kontext_fast.metrics.clip_text import ClipText
from kontext_fast.metrics.latent_error import LatentError
from kontext_fast.metrics.shapes_judge import JudgeDone
from kontext_fast.verify.comparisons import ByItem, FidelityDistances
from kontext_fast.verify.controls import (
    CONTROL_ITEMS,
    JPEG_QUALITY,
    NO_LOSS_ARMS,
    RERUN,
    control_count,
    degrade,
    insensitivity,
    sensitivity_checks,
)
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


def test_two_answers_are_too_few_for_a_loss_of_yes_and_no() -> None:
    """As bounded scores they say nothing, where two equal differences of any other score would be certain."""
    two = dict(list(_items(-1.0).items())[:2])
    assert _of_quality({**DETECTED, Control.UNEDITED.value: two}) == "it missed unedited input"
    assert _of_quality({**DETECTED, RERUN: two}) is None


def test_loss_of_half_of_the_items_is_detected() -> None:
    half = {**DETECTED, Control.UNEDITED.value: _items(-0.5)}
    assert _of_quality(half) is None
    checks = sensitivity_checks(
        JudgeDone,
        MARGINS.model_copy(update={"primary": {"clip_text": 0.5}}),
        fidelity=None,
        distances={},
        differences={**half, **{name: _items(0.0) for name in NO_LOSS_ARMS}, RERUN: _items(-0.3)},
    )
    assert insensitivity(checks) == "it found a loss in re-run", "without a margin nothing is tolerated"


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


def test_every_check_says_what_it_is_of() -> None:
    inert = min(JudgeDone.must_detect)
    values = {control.value: _items(-1.0) for control in JudgeDone.must_detect}
    quiet = {name: _items(0.0) for name in NO_LOSS_ARMS}
    checks = sensitivity_checks(
        JudgeDone, MARGINS, fidelity=None, distances={}, differences={**quiet, **values}, inert=[inert]
    )
    assert {check.metric for check in checks} == {"judge_done"}
    assert [(check.control, check.expected, check.inert) for check in checks if check.detected is None] == [
        (inert.value, True, True)
    ]
    assert {check.control for check in checks if check.expected and check.detected} == {
        control.value for control in JudgeDone.must_detect - {inert}
    }
    assert {check.control for check in checks if not check.expected} == set(NO_LOSS_ARMS)


def test_all_missed_controls_are_named() -> None:
    none = {control.value: _items(0.0) for control in JudgeDone.must_detect}
    assert _of_quality(none) == f"it missed {', '.join(sorted(control.value for control in JudgeDone.must_detect))}"
    lost = {name: _items(-1.0) for name in NO_LOSS_ARMS}
    assert _of_quality({**DETECTED, **lost}) == f"it found a loss in {', '.join(NO_LOSS_ARMS)}"


def _loss_in(values: Sequence[float]) -> bool | None:
    """Whether CLIP's score finds a loss in swapped instructions."""
    by_item = {str(index): (value,) for index, value in enumerate(values)}
    checks = sensitivity_checks(
        ClipText, MARGINS, fidelity=None, distances={}, differences={Control.SWAPPED.value: by_item}
    )
    (found,) = {check.detected for check in checks if check.control == Control.SWAPPED.value}
    return found


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([-1.0], None),
        ([-1.0, -1.01], True),
        ([-1.0, -1.0, 0.9], False),
        ([-0.6, -0.5, -0.4, -0.5, 0.6, 0.5], False),
        ([0.0, 0.0, 0.0], False),
    ],
    ids=["one item", "two items", "one gained", "half gained", "none"],
)
def test_loss_takes_two_items_and_a_bound_below_nothing(values: list[float], found: bool | None) -> None:
    assert _loss_in(values) is found


def test_items_on_their_floor_are_not_farther() -> None:
    control = {name.value: _items(0.01) for name in LatentError.must_detect}
    assert _of_fidelity(control) == f"it missed {', '.join(sorted(control))}"
    # The floor of an item is that of the arm which takes it farthest.
    floors = {RERUN: _items(0.05), "other precision": _items(0.01)}
    checks = sensitivity_checks(
        LatentError,
        MARGINS,
        fidelity=FidelityDistances("latent_error", {}, floors),
        distances={name: _items(0.03) for name in control},
        differences={},
    )
    assert {check.detected for check in checks} == {False}


def test_jpeg_control_has_its_quality_and_takes_gray_images() -> None:
    picture = noise(3)
    worse = degrade(picture.convert("L"), Control.JPEG, picture)
    assert worse.mode == "RGB"
    file = BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    with Image.open(file) as expected:
        assert degrade(picture, Control.JPEG, picture).tobytes() == expected.convert("RGB").tobytes()


@pytest.mark.parametrize(("items", "count"), [(8, 8), (15, 15), (16, 16), (40, 16), (100, 26), (200, 50)])
def test_controls_take_a_quarter_in_calls_of_one_shape(items: int, count: int) -> None:
    assert control_count(items, CONTROL_ITEMS) == count
