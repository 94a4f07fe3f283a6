"""The original's figures come out of our model; nothing here repeats a number that it did not compute."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from examples.original import figures
from examples.original.page import page
from examples.original.render import write
from kontext_fast.cost.billing import DAYS_PER_MONTH

OF = figures.published()
EXAMPLE = Path(__file__).parents[2] / "examples" / "original"


def test_hours_saved_a_day() -> None:
    assert round(figures.hours_saved_per_day(OF), 4) == 12.1389
    assert round(figures.hours_saved_per_day(OF, pooled=True), 4) == 12.1257


def test_dollars_at_the_reference_price() -> None:
    assert round(figures.month(OF, 2.28, days=30) / 30, 3) == 27.677
    assert round(figures.month(OF, 2.28), 2) == 830.30
    assert round(figures.month(OF, 2.28, days=DAYS_PER_MONTH), 2) == 841.83


def test_the_five_published_savings() -> None:
    found = {saving.usd: figures.recomputed(OF, saving.rule)[0] for saving in OF.savings}
    assert found[831] == pytest.approx(830.30, abs=0.005)
    assert found[1091] == pytest.approx(1091.31, abs=0.005)
    assert found[1210] is None
    assert found[1742] == pytest.approx(1742.01, abs=0.005)
    assert found[8303] == pytest.approx(8303.00, abs=0.005)


def test_published_and_intended_break_even() -> None:
    assert round(figures.published_break_even(OF), 2) == 0.72
    mean = figures.month(OF, OF.mean_usd_per_hour)
    assert round(figures.break_even(OF, mean), 2) == 3.44


def test_floored_gpus_exaggerate_the_reduction() -> None:
    assert round(100 * figures.floored_reduction(OF), 1) == OF.calculator.reduction_percent == 71.4
    assert round(100 * figures.reduction(OF), 1) == 62.1
    assert [round(gpus, 2) for gpus in figures.gpus_wanted(OF)] == [7.5, 2.84]


def test_example_equals_what_the_command_writes(tmp_path: Path) -> None:
    write(tmp_path)
    assert (EXAMPLE / "README.md").read_text(encoding="utf-8") == page(OF)
    rendered = sorted(file.name for file in EXAMPLE.iterdir() if file.suffix in (".md", ".png"))
    assert sorted(file.name for file in tmp_path.iterdir()) == rendered
    for name in ("h100_summary.png", "h100_cost_analysis.png"):
        with Image.open(tmp_path / name) as drawn, Image.open(EXAMPLE / name) as kept:
            assert drawn.size == kept.size
            assert drawn.width >= 1600


def test_original_page_says_nothing_was_measured_here() -> None:
    text = page(OF)
    assert "As published, not measured here" in text
    for published in ("$831", "$1,091", "$1,210", "$1,742", "$8,303", "0.72", "3.44", "71.4 %", "62.1 %"):
        assert published in text
