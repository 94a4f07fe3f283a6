"""Every change of a function meets the tests that reach it, in a fork of a session that goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HALVES = """
import os, time
calls = set()
def half(value):
    calls.add("halves.x_half")
    match os.environ["MUTANT_UNDER_TEST"]:
        case "halves.x_half__mutmut_1": return value * 2
        case "halves.x_half__mutmut_3": os.abort()
        case "halves.x_half__mutmut_4": os.kill(os.getpid(), 24)
    return value / 2
"""
TESTS = """
import pytest, halves
@pytest.fixture(scope="session")
def session_wide():
    with open("setups.txt", "a") as file: file.write("x")
    yield 4
    with open("teardowns.txt", "a") as file: file.write("x")
def test_nothing_of_halves(): pass
def test_zero(): assert halves.half(0) == 0
def test_four(session_wide): assert halves.half(session_wide) == 2
"""
PROGRAM = """
import json, sys, halves, pytest
from tools.forked_tests import ForkedTests
def take():
    taken = set(halves.calls); halves.calls.clear(); return taken
mutants = [f"halves.x_half__mutmut_{number}" for number in (1, 2, 3, 4)] + ["halves.x_other__mutmut_1"]
plugin = ForkedTests(mutants, float(sys.argv[1]), take, int(sys.argv[2]))
pytest.main(["-q", "-p", "no:cacheprovider", "tests_of_halves.py"], plugins=[plugin])
print(json.dumps([plugin.outcomes[mutant] for mutant in mutants if mutant in plugin.outcomes]))
"""


def outcomes(folder: Path, seconds: float, tests: str = TESTS, processes: int = 1) -> list[int]:
    root = Path(__file__).parents[2]
    (folder / "halves.py").write_text(HALVES)
    (folder / "tests_of_halves.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\n")
    code = f"import sys; sys.path[:0] = ['.', {str(root)!r}]\n{PROGRAM}"
    command = [sys.executable, "-c", code, str(seconds), str(processes)]
    # Plugins of others would be most of the seconds.
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    codes: list[int] = json.loads(done.stdout.splitlines()[-1])
    return codes


def test_mutants_are_noticed_by_tests_that_reach_them(tmp_path: Path) -> None:
    assert outcomes(tmp_path, 20) == [1, 0, 36, 36, 0]
    assert (tmp_path / "setups.txt").read_text() == (tmp_path / "teardowns.txt").read_text() == "x"


def test_outcomes_of_several_processes_are_those_of_one(tmp_path: Path) -> None:
    assert outcomes(tmp_path, 20, processes=3) == [1, 0, 36, 36, 0]
    assert (tmp_path / "setups.txt").read_text() == (tmp_path / "teardowns.txt").read_text() == "x"


def test_quickest_test_runs_alone_where_time_is_short(tmp_path: Path) -> None:
    slow = TESTS.replace("assert halves.half(session", "sum(range(5_000_000)); assert halves.half(session")
    assert outcomes(tmp_path, 0, slow)[0] == 0


def test_nothing_is_tried_where_a_test_fails_already(tmp_path: Path) -> None:
    assert outcomes(tmp_path, 20, TESTS.replace("== 2", "== 3")) == []
