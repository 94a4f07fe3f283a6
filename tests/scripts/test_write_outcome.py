from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

SUITE = """\
import pytest

def test_right(record_property):
    record_property("cost in percent", (0.1, 0.4))

def test_wrong():
    assert False

@pytest.mark.skip(reason="not here")
def test_elsewhere():
    pass

@pytest.fixture
def broken():
    raise RuntimeError("no")

def test_without_ground(broken):
    pass
"""


def test_what_pytest_said_is_written_down(tmp_path: Path) -> None:
    """By a real run of pytest."""
    (tmp_path / "test_sample.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=junit.xml"]
    assert subprocess.run(command, cwd=tmp_path, check=False, capture_output=True).returncode == 1
    script = ROOT / "scripts" / "write_outcome.py"
    subprocess.run([sys.executable, str(script), "junit.xml", "out.md"], cwd=tmp_path, check=True)
    text = (tmp_path / "out.md").read_text()
    assert ": 1 error, 1 failed, 1 passed, 1 skipped in 0 minutes." in text
    assert "- test_sample::test_wrong\n" in text
    assert "- test_sample::test_without_ground\n" in text
    assert "- test_right: cost in percent, (0.1, 0.4)\n" in text
    assert "commit " in text
    assert str(tmp_path) not in text


def test_the_makefile_keeps_the_outcome_of_a_failure_too() -> None:
    recipe = (ROOT / "Makefile").read_text().split("test-full: ", 1)[1].split("\n\n", 1)[0]
    assert "write_outcome.py" in recipe
    assert "exit $$status" in recipe
