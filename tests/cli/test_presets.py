"""`kontext presets` says what there is and why something is refused here."""

from __future__ import annotations

import json

import pytest

from kontext_fast.cli.main import run
from kontext_fast.optimizations.presets import PRESETS
from kontext_fast.optimizations.registry import discover


def test_json_is_the_last_line_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["presets", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [preset["name"] for preset in listed["presets"]] == list(PRESETS)
    optimizations = {one["name"]: one for one in listed["optimizations"]}
    assert set(optimizations) == set(discover())
    assert optimizations["fuse_qkv"]["effect"] == "numeric"
    # The conflict is declared by one of the two only.
    assert {one["other"] for one in optimizations["compile"]["conflicts"]} == {"first_block_cache", "engine", "solver"}
    assert {one["other"] for one in optimizations["first_block_cache"]["conflicts"]} == {"compile", "engine", "solver"}


def test_without_a_compiler_the_table_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run(["presets"]) == 0
    table = capsys.readouterr().out
    assert table.count("install g++") == 3  # the presets compile and classic, and the optimization
    assert "here: ready" in table
    assert "on the checkpoint random: first_block_cache schedule=every_second" in table
