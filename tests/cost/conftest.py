from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kontext_fast.cli.main import run


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Kontext = Callable[..., Outcome]


@pytest.fixture
def kontext(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kontext:
    """Run a command line in an empty folder, on a terminal wide enough for every sentence."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return Outcome(code, *capfd.readouterr())

    return call
