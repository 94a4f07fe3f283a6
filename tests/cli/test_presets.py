"""`kontext presets` says what there is and why something is refused here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kontext_fast.cli.main import run
from kontext_fast.optimizations.presets import H100_SECONDS, PRESETS
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


def test_six_rows_fit_into_80_columns_and_name_the_rest(kontext: Any) -> None:
    lines = kontext("presets").out.splitlines()
    assert lines[0].split() == ["preset", "H100", "memory", "images", "what", "it", "is"]
    assert [line.split()[0] for line in lines[1:7]] == [
        "baseline",
        "faithful",
        "balanced",
        "fast",
        "turbo",
        "low_memory",
    ]
    assert all(len(line) <= 80 for line in lines[:7])
    assert f"{H100_SECONDS['turbo']} s" in lines[5]
    rest = next(line for line in lines if line.startswith("More: "))
    assert all(name in rest or name in "".join(lines[1:7]) for name in PRESETS)


def test_details_of_one_end_in_what_to_type(kontext: Any) -> None:
    out = kontext("presets", "turbo(computed=5)").out
    for words in ("computed=5", "images: lossy", "runs here", "--preset 'turbo(computed=5)'", "kontext verify"):
        assert words in out
    assert str(H100_SECONDS["turbo"]) not in out  # turbo's own time
    assert "on the checkpoint random: first_block_cache schedule=every_second" in kontext("presets", "classic").out
    assert "engine and compile exclude each other" in kontext("presets", "compile").out
    assert json.loads(kontext("presets", "fast", "--json").out)["h100_seconds"] == H100_SECONDS["fast"]
    assert kontext("presets", "trubo").err == "There is no preset 'trubo'; did you mean turbo?\n"


def test_without_a_compiler_the_details_say_what_to_install(kontext: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    details = kontext("presets", "compile").out
    assert "install g++" in details
    assert "runs here" not in details
