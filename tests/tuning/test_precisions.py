"""Mixtures of precisions: which there are, what they take, and which an edit has time for."""

from __future__ import annotations

import pytest

from kontext_fast.optimizations.presets import find_preset
from kontext_fast.optimizations.techniques.engine import Engine
from kontext_fast.tuning.precisions import (
    BlockPrecision,
    EditTimes,
    Mixture,
    longest_within,
    mixtures_of,
    seconds_of,
)

TIMES: dict[BlockPrecision, EditTimes] = {"fp8": EditTimes(0.4, 0.2), "bf16": EditTimes(0.5, 0.3)}


def test_times_of_two_edits_give_what_surrounds_the_evaluations() -> None:
    times = EditTimes.of({"10": 2.4, "2": 0.8})
    assert times.each == pytest.approx(0.2)
    assert times.around == pytest.approx(0.4)


def test_seconds_add_up_each_evaluation_in_its_own_precision() -> None:
    assert seconds_of(Mixture(10, "fp8"), TIMES) == pytest.approx(2.4)
    assert seconds_of(Mixture(10, "fp8", 3), TIMES) == pytest.approx(0.4 + 7 * 0.2 + 3 * 0.3)
    assert seconds_of(Mixture(10, "bf16"), TIMES) == pytest.approx(3.5)


def test_mixtures_keep_the_last_evaluations_in_full_precision() -> None:
    mixed = mixtures_of(3)
    assert mixed == [Mixture(3, "fp8"), Mixture(3, "fp8", 2), Mixture(3, "bf16")]
    (engine,) = (part for part in mixed[1].optimizations if isinstance(part, Engine))
    assert engine.precision == "fp8"
    assert engine.full_precision_steps(3) == {1, 2}
    assert mixed[0].optimizations == find_preset("balanced").optimizations
    assert mixed[2].optimizations == find_preset("faithful").optimizations
    assert len({mixture.key for number in (3, 9) for mixture in mixtures_of(number)}) == 8


def test_most_evaluations_within_the_seconds_are_tried() -> None:
    longest = longest_within(2.0, TIMES, most=30, precision="auto")
    assert set(longest) == {
        Mixture(8, "fp8"), Mixture(7, "fp8", 2), Mixture(6, "fp8", 3), Mixture(5, "bf16")
    }  # fmt: skip
    assert longest_within(2.0, TIMES, most=30, precision="bf16") == [Mixture(5, "bf16")]
    assert longest_within(2.0, TIMES, most=4, precision="fp8") == [Mixture(4, "fp8")]
    assert longest_within(0.7, TIMES, most=30, precision="auto") == []
