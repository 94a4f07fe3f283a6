"""Measuring everything of a card: which steps are skipped, interrupted or left."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import measure_card


@pytest.fixture
def card() -> Any:
    return measure_card


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_existing_file_is_not_measured_again(card: Any, tmp_path: Path) -> None:
    def write(out: Path) -> Sequence[str]:
        return python(f"open({str(out / 'one.json')!r}, 'x')")

    step = card.Step("one", write, "one.json", least_s=0)
    assert card.measure([step], tmp_path, 60) == {"one": "done"}
    assert card.measure([step], tmp_path, 60) == {"one": "exists"}
    (tmp_path / "one.json").unlink()
    assert card.measure([step], tmp_path, 60) == {"one": "done"}


def test_failed_step_does_not_stop_the_next_one(card: Any, tmp_path: Path) -> None:
    steps = [
        card.Step("wrong", lambda _: python("raise SystemExit(3)"), "wrong.json", least_s=0),
        card.Step("right", lambda _: python("pass"), "right.json", least_s=0),
    ]
    assert card.measure(steps, tmp_path, 60) == {"wrong": "failed (3)", "right": "done"}


def test_step_is_not_started_without_enough_time(card: Any, tmp_path: Path) -> None:
    step = card.Step("long", lambda _: python("open('/nowhere/at/all', 'x')"), "long.json", least_s=30)
    assert card.measure([step], tmp_path, 20) == {"long": "left"}


def test_benchmark_is_interrupted_in_time_to_store_runs(
    card: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "_GRACE_S", 5.0)
    stored = tmp_path / "stored"
    code = f"""
import time
try:
    time.sleep(60)
except KeyboardInterrupt:
    open({str(stored)!r}, "x")
"""
    began = time.monotonic()
    assert card.measure([card.Step("bench", lambda _: python(code), least_s=0)], tmp_path, 8) == {"bench": "left"}
    assert stored.is_file()
    assert time.monotonic() - began < 10


def test_commands_have_only_options_of_their_programs(card: Any, tmp_path: Path) -> None:
    for step in card.STEPS:
        command = list(step.command(tmp_path))
        if "bench" in command:
            from kontext_fast.bench.suites import read_suite

            suite = command[command.index("--suite") + 1]
            assert read_suite(suite).resolve("random").presets
        else:
            text = subprocess.run([*command[:3], "--help"], capture_output=True, text=True, check=True).stdout
            assert all(option in text for option in command if option.startswith("--"))


def test_unknown_step_is_refused_first(card: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["measure_card.py", "--out", "nowhere", "--only", "centre,magic"])
    assert card.main() == 2
    assert "no step magic" in capsys.readouterr().err
