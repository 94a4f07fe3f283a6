from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kontext_fast.optimizations.presets import PRESETS
from kontext_fast.pipeline import folder
from kontext_fast.pipeline.device import Machine
from kontext_fast.pipeline.hub import KONTEXT_DEV
from tests.optimizations.test_default_preset import gpu

TOKEN = "hf_" + "s" * 34


def test_doctor_lists_what_runs_and_why_the_rest_does_not(kontext: Any) -> None:
    outcome = kontext("doctor", "--json")
    assert outcome.code == 0
    findings = json.loads(outcome.out.splitlines()[-1])
    assert findings["packages"]["torch"] == torch.__version__
    assert findings["checkpoints"]["tiny"] is None
    assert "34 GiB" in findings["checkpoints"]["random"]
    assert findings["presets"].keys() == PRESETS.keys()
    assert findings["presets"]["baseline"] is None
    plain = kontext("doctor")
    assert plain.code == 0
    for words in ("\u2713 checkpoint tiny", "\u2717 no GPU found", "presets run here", torch.__version__):
        assert words in plain.out
    assert plain.out.endswith("\n  kontext demo\n")


def test_last_line_of_doctor_is_what_to_type_next(kontext: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def last_line(memory_gib: float) -> str:
        monkeypatch.setattr(Machine, "detect", lambda _device=None: gpu(memory_gib))
        return str(kontext("doctor").out.splitlines()[-1]).strip()

    assert last_line(80) == "hf auth login"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert last_line(80) == 'kontext edit photo.jpg "make the car red"'
    assert last_line(24) == 'kontext edit photo.jpg "make the car red" --preset low_memory'
    assert last_line(12) == "kontext demo"


def test_ticks_are_green_unless_no_color_is_set(kontext: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in kontext("doctor").out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[32m\u2713" in kontext("doctor").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in kontext("doctor").out


def test_preset_without_its_compiler_has_the_reason(kontext: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    presets = json.loads(kontext("doctor", "--json").out)["presets"]
    assert "compiler" in presets["compile"]
    assert presets["fuse_qkv"] is None


def test_token_is_never_shown(kontext: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for arguments in (["doctor"], ["doctor", "--json"], ["doctor", "--debug"]):
        outcome = kontext(*arguments)
        assert TOKEN not in outcome.out + outcome.err


def test_doctor_without_tiny_is_refused(kontext: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "tiny"
    shutil.copytree(folder.TINY_FOLDER, broken)
    shutil.rmtree(broken / "vae")
    monkeypatch.setattr(folder, "TINY_FOLDER", broken)
    outcome = kontext("doctor")
    assert outcome.code == 3
    assert "its vae" in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_small_card_is_ready_for_the_preset_that_fits(kontext: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(Machine, "detect", lambda _device=None: gpu(24))
    findings = json.loads(kontext("doctor", "--json").out.splitlines()[-1])
    assert findings["checkpoints"][KONTEXT_DEV] is None
    assert findings["presets"]["low_memory"] is None
    assert "42 GiB" in findings["presets"]["faithful"]
    monkeypatch.setattr(Machine, "detect", lambda _device=None: gpu(12))
    findings = json.loads(kontext("doctor", "--json").out.splitlines()[-1])
    assert "no preset fits" in findings["checkpoints"][KONTEXT_DEV]
