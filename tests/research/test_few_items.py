"""How often few items call a preset a loss, with the rule itself, on draws whose truth is known. Seeds are fixed."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from kontext_fast.verify.conditions import CONDITION_ITEMS
from kontext_fast.verify.margins import read_margins
from research import few_items

MARGINS = read_margins()
RECORDS = Path(__file__).parents[2] / "results"
SIMULATIONS = 100


def is_at_most_one_in_twenty(rate: float) -> bool:
    """Unless the draws contradict it at 99.9 %: a right rule fails once in a thousand seeds, and the seed is fixed."""
    return bool(binomtest(round(rate * SIMULATIONS), SIMULATIONS).proportion_ci(0.999).low <= 0.05)


@cache
def logs() -> np.ndarray:
    folder = RECORDS / "h100" / "2026-11-26-tiny-verify"
    return few_items.logs_at_limits(folder, "turbo", MARGINS)


def test_drawn_items_are_at_the_limits() -> None:
    assert len(logs()) == len(MARGINS.seed_noise.metrics)
    for of_metric in logs():
        assert np.quantile(of_metric, 0.5) == pytest.approx(np.log(MARGINS.seed_noise.median))
        assert np.quantile(of_metric, 0.9) == pytest.approx(np.log(MARGINS.seed_noise.p90))


def test_preset_at_the_limits_is_a_loss_in_a_way_of_use_in_one_of_twenty_at_most() -> None:
    draw = few_items.noise_draw(logs(), CONDITION_ITEMS, 1.0, 2)
    assert is_at_most_one_in_twenty(few_items.rate(few_items.is_loss, draw, MARGINS, SIMULATIONS))
    assert not is_at_most_one_in_twenty(few_items.rate(few_items.was_loss, draw, MARGINS, SIMULATIONS))
    rounded = few_items.floor_draw(CONDITION_ITEMS, 1.0, MARGINS)
    assert is_at_most_one_in_twenty(few_items.rate(few_items.is_loss_of_rounding, rounded, MARGINS, SIMULATIONS))
    assert not is_at_most_one_in_twenty(few_items.rate(few_items.was_loss_of_rounding, rounded, MARGINS, SIMULATIONS))


def test_preset_at_three_times_the_limits_is_a_loss_in_a_way_of_use() -> None:
    draw = few_items.noise_draw(logs(), CONDITION_ITEMS, 3.0, 2)
    assert few_items.rate(few_items.is_loss, draw, MARGINS, SIMULATIONS) > 0.98
    rounded = few_items.floor_draw(CONDITION_ITEMS, 3.0, MARGINS)
    assert few_items.rate(few_items.is_loss_of_rounding, rounded, MARGINS, SIMULATIONS) > 0.98


@pytest.mark.parametrize("n", [30, 100])
def test_preset_at_the_limits_is_a_loss_by_all_items_in_one_of_twenty_at_most(n: int) -> None:
    draw = few_items.noise_draw(logs(), n, 1.0, 1)
    assert is_at_most_one_in_twenty(few_items.rate(few_items.is_loss_of_all, draw, MARGINS, SIMULATIONS))
    worse = few_items.noise_draw(logs(), n, 3.0, 1)
    assert few_items.rate(few_items.is_loss_of_all, worse, MARGINS, 50) == 1.0


def test_rates_are_stored_by_rule_items_and_multiple(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_items, "COUNTS", (16,))
    monkeypatch.setattr(few_items, "MAIN_COUNTS", (30,))
    out = tmp_path / "few_items.json"
    folder = RECORDS / "h100" / "2026-11-26-tiny-verify"
    few_items.main(["--records", str(folder), "--out", str(out), "--simulations", "5"])
    stored = json.loads(out.read_text())
    assert stored["simulations"] == 5
    assert len(stored["rates"]) == 3 * len(few_items.SCALES)
    assert {row["now"] for row in stored["rates"] if row["scale"] == 3.0} == {1.0}
