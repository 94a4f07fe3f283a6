"""Which metrics are blind: those that miss what they must see, or see what is not there."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest

from kontext_fast.metrics.base import Control
from kontext_fast.metrics.clip_text import ClipText
from kontext_fast.metrics.judge_done import JudgeDone
from kontext_fast.metrics.latent_error import LatentError
from kontext_fast.verify.comparisons import ByItem, Fidelity
from kontext_fast.verify.controls import POSITIVE, RERUN, blindness, sightings, spoiled
from kontext_fast.verify.margins import read_margins
from tests.metrics.cases import noise

MARGINS = read_margins()


def _items(value: float, n: int = 16) -> ByItem:
    return {f"{index:02d}": (value * (1 + 0.01 * index),) for index in range(n)}


def _of_quality(differences: Mapping[str, ByItem], *, idle: Collection[str] = ()) -> str | None:
    quiet = {name: _items(0.0) for name in POSITIVE}
    return blindness(
        sightings(JudgeDone, MARGINS, fidelity=None, distances={}, differences={**quiet, **differences}, idle=idle)
    )


def _of_fidelity(distances: Mapping[str, ByItem], rounding: ByItem | None = None) -> str | None:
    floor = Fidelity("latent_error", {}, {RERUN: _items(0.0), "other precision": rounding or _items(0.01)})
    return blindness(sightings(LatentError, MARGINS, fidelity=floor, distances=distances, differences={}))


SEEN = {Control.SWAPPED.value: _items(-1.0), Control.UNEDITED.value: _items(-1.0)}


def test_metric_that_detects_all_controls_is_sensitive() -> None:
    assert _of_quality(SEEN) is None


def test_missed_control_makes_a_metric_insensitive() -> None:
    assert _of_quality({**SEEN, Control.UNEDITED.value: _items(0.0)}) == "it missed unedited input"
    few = {name: dict(list(values.items())[:1]) for name, values in SEEN.items()}
    assert _of_quality(few) == "it could not be tried on swapped instructions, unedited input"


def test_loss_in_a_rerun_makes_a_metric_insensitive() -> None:
    assert _of_quality({**SEEN, RERUN: _items(-1.0)}) == "it saw a loss in re-run"
    # What rounding costs every item a little, and no verdict anything, is no loss that was imagined.
    assert _of_quality({**SEEN, RERUN: _items(-0.5 * MARGINS.primary["judge_done"])}) is None


def test_inert_control_tests_no_metric() -> None:
    only = {Control.SWAPPED.value: _items(-1.0)}
    assert _of_quality(only, idle={"unedited input"}) is None
    assert _of_quality({}, idle={"unedited input", "swapped instructions"}) == "no control had any effect"


def test_detected_distance_exceeds_rounding() -> None:
    far = {name: _items(0.1) for name in ("half the steps", "cache threshold x4", "swapped instructions")}
    assert _of_fidelity(far) is None
    assert _of_fidelity({**far, "half the steps": _items(0.009)}) == "it missed half the steps"
    # One item far off is not the control seen: the others were missed.
    once = {**_items(0.005), "00": (0.06,)}
    assert _of_fidelity({**far, "half the steps": once}) == "it missed half the steps"


def test_item_that_rounding_flips_hides_no_others() -> None:
    far = {name: _items(0.03) for name in ("half the steps", "cache threshold x4", "swapped instructions")}
    turned_over = {**_items(0.01), "03": (0.9,)}
    assert _of_fidelity(far, turned_over) is None
    # Nine of sixteen are no proof.
    half = {**_items(0.009), **_items(0.03, 9)}
    assert _of_fidelity({**far, "half the steps": half}, turned_over) == "it missed half the steps"


def test_without_a_floor_nothing_is_detected() -> None:
    found = sightings(LatentError, MARGINS, fidelity=None, distances=SEEN, differences={})
    assert blindness(found) is not None
    assert blindness(sightings(ClipText, MARGINS, fidelity=None, distances={}, differences={})) is not None


def test_degraded_images_differ_repeatably() -> None:
    picture = noise(1)
    for control in (Control.BLUR, Control.JPEG):
        worse = spoiled(picture, control, noise(2))
        assert worse.size == picture.size
        assert worse.tobytes() != picture.tobytes()
        assert worse.tobytes() == spoiled(picture, control, noise(2)).tobytes()
    unedited = spoiled(picture, Control.UNEDITED, noise(2, (128, 96)))
    assert unedited.tobytes() == noise(2, (128, 96)).resize(picture.size).tobytes()
    with pytest.raises(ValueError, match="half the steps"):
        spoiled(picture, Control.HALF_STEPS, noise(2))
