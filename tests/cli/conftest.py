from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from kontext_fast.cli.main import run


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Kontext = Callable[..., Outcome]


@pytest.fixture
def kontext(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kontext:
    """Run a command line in an empty folder, without a token and without a GPU; what libraries print counts too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no settings"))
    settings = [variable for variable in os.environ if variable.startswith("KONTEXT_")]
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", *settings):
        monkeypatch.delenv(variable, raising=False)

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return Outcome(code, *capfd.readouterr())

    return call


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "cat.jpg"
    Image.effect_noise((150, 100), 80).convert("RGB").save(path)
    return path
