"""Results and progress keep apart: what goes to a file is complete, whatever the terminal shows."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from kontext_fast.cli.output import print_json, result_folder
from kontext_fast.errors import InvalidInput

PROGRAM = """
import sys, time
from kontext_fast.cli import output
output._QUIET_S = 0.0
with output.progress_bar() as bar:
    bar.begin("working", 3)
    time.sleep(0.5)
    for step in range(3):
        bar.step(step, 3)
        with bar.hidden():
            print(f"result {step}")
    output.print_json({"done": 3})
"""


def test_results_reach_stdout_while_a_bar_is_shown() -> None:
    terminal, side = pty.openpty()
    try:
        process = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            stdout=subprocess.PIPE,
            stderr=side,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"},
            text=True,
            timeout=60,
            check=True,
        )
        os.close(side)
        shown = os.read(terminal, 65536).decode()
    finally:
        os.close(terminal)
    assert process.stdout.splitlines() == ["result 0", "result 1", "result 2", '{"done": 3}']
    assert "working" in shown
    assert "result" not in shown


def test_folder_two_levels_down_is_a_slip(tmp_path: Path) -> None:
    assert result_folder(tmp_path / "new", "bench") == tmp_path / "new"
    with pytest.raises(InvalidInput, match="There is no folder"):
        result_folder(tmp_path / "no" / "such" / "new", "bench")


def test_json_has_no_number_that_is_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"bounds": [1.5, float("inf")], "worst": {"p90": float("nan")}, "n": 3})
    assert json.loads(capsys.readouterr().out) == {"bounds": [1.5, None], "worst": {"p90": None}, "n": 3}
