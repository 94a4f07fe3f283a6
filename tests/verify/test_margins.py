from __future__ import annotations

from pathlib import Path

import pytest

from kontext_fast.errors import InvalidInput
from kontext_fast.metrics.base import discover
from kontext_fast.verify.margins import Margins, read_margins

BUNDLED = Path(__file__).parents[2] / "src" / "kontext_fast" / "verify" / "margins.toml"


def test_bundled_margins_name_existing_metrics() -> None:
    margins = read_margins()
    assert set(margins.primary) <= {name for name, metric in discover().items() if metric.role == "quality"}
    assert set(margins.seed_noise.metrics) <= {name for name, metric in discover().items() if metric.role == "fidelity"}


def test_hash_depends_on_values_alone(tmp_path: Path) -> None:
    margins = read_margins()
    copy = tmp_path / "margins.toml"
    copy.write_text("# a remark\n" + BUNDLED.read_text())
    assert read_margins(copy).sha256 == margins.sha256
    copy.write_text(BUNDLED.read_text().replace("judge_done = 0.05", "judge_done = 0.06"))
    assert read_margins(copy).sha256 != margins.sha256
    assert Margins.model_validate(margins.model_dump(mode="json")) == margins
    copy.write_text(BUNDLED.read_text(), encoding="utf-8-sig")
    assert read_margins(copy).sha256 == margins.sha256


def test_tests_that_hold_a_level_together_are_stricter_each() -> None:
    margins = read_margins().model_copy(update={"confidence": 0.95})
    assert margins.stricter(5).confidence == pytest.approx(0.99)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("judge_done = 0.05", "judge_done = -1", "primary.judge_done"),
        ("confidence = 0.95", "confidence = 0.95\nconfidance = 1", "confidance"),
        ("confidence = 0.95", "confidence = ", "not valid TOML"),
        ("worst = 3.0", "", "floor.worst"),
    ],
)
def test_mistake_is_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    copy = tmp_path / "mine.toml"
    copy.write_text(BUNDLED.read_text().replace(old, new))
    with pytest.raises(InvalidInput, match=f"^mine.toml.*{message}"):
        read_margins(copy)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_margins(tmp_path / "nowhere.toml")
