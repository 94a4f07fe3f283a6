"""Options from the environment and from files: who wins, what is printed, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kontext_fast.cli.settings import read_settings
from kontext_fast.errors import InvalidInput

OPTIONS: dict[str, dict[str, Any]] = {
    "edit": {"preset": str, "steps": int, "true_cfg": float, "lora": list[str] | None, "overwrite": bool},
    "bench": {"preset": list[str] | None, "rounds": int | None, "weights": Path | None},
}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))


def values(command: str, config: str | None = None) -> dict[str, Any]:
    return {name: setting.value for name, setting in read_settings(command, OPTIONS, config).items()}


def test_nothing_set_is_nothing_read() -> None:
    assert read_settings("edit", OPTIONS) == {}


def test_environment_precedes_file_and_own_precedes_common(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("kontext.toml").write_text('preset = "d"\nsteps = 4\n\n[edit]\npreset = "c"\nsteps = 3\n')
    assert values("edit") == {"preset": "c", "steps": 3}
    assert values("bench") == {"preset": ["d"]}
    monkeypatch.setenv("KONTEXT_PRESET", "b")
    assert values("edit") == {"preset": "b", "steps": 3}
    monkeypatch.setenv("KONTEXT_EDIT_PRESET", "a")
    assert values("edit") == {"preset": "a", "steps": 3}
    assert values("bench") == {"preset": ["b"]}


def test_each_setting_names_its_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("kontext.toml").write_text("steps = 4\n\n[edit]\ntrue-cfg = 2\n")
    monkeypatch.setenv("KONTEXT_EDIT_PRESET", "fast")
    origins = {name: setting.origin for name, setting in read_settings("edit", OPTIONS).items()}
    assert origins == {
        "preset": "KONTEXT_EDIT_PRESET",
        "steps": "kontext.toml, line 1",
        "true_cfg": "kontext.toml, line 4",
    }


def test_values_have_the_type_of_their_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KONTEXT_LORA", "a.safetensors:0.5, b.safetensors")
    monkeypatch.setenv("KONTEXT_OVERWRITE", "yes")
    monkeypatch.setenv("KONTEXT_STEPS", "7")
    monkeypatch.setenv("KONTEXT_WEIGHTS", "there")
    monkeypatch.setenv("KONTEXT_TRUE_CFG", "")
    assert values("edit") == {"lora": ["a.safetensors:0.5", "b.safetensors"], "overwrite": True, "steps": 7}
    assert values("bench") == {"weights": Path("there")}


def test_first_file_that_exists_is_the_only_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home" / "kontext-fast"
    home.mkdir(parents=True)
    (home / "kontext.toml").write_text("steps = 1\n")
    assert values("edit") == {"steps": 1}
    Path("pyproject.toml").write_text(
        '[project]\nname = "x"\n\n[tool.kontext-fast]\nsteps = 2\n\n[tool.kontext-fast.edit]\ntrue-cfg = 3\n'
    )
    assert values("edit") == {"steps": 2, "true_cfg": 3.0}
    assert read_settings("edit", OPTIONS)["true_cfg"].origin == "pyproject.toml, line 8"
    Path("kontext.toml").write_text("steps = 3\n")
    assert values("edit") == {"steps": 3}
    Path("other.toml").write_text("steps = 4\n")
    monkeypatch.setenv("KONTEXT_CONFIG", "other.toml")
    assert values("edit") == {"steps": 4}
    Path("named.toml").write_text("steps = 5\n")
    assert values("edit", "named.toml") == {"steps": 5}


def test_file_with_a_byte_order_mark_is_read() -> None:
    Path("kontext.toml").write_bytes(b"\xef\xbb\xbfsteps = 3\n")
    assert values("edit") == {"steps": 3}


def test_unusable_pyproject_of_another_program_is_left_alone() -> None:
    Path("pyproject.toml").write_text("[broken")
    assert values("edit") == {}


BAD_FILES = {
    "not TOML": ("steps = ", "is not valid TOML"),
    "key that is no option": ("stepps = 3", "line 1: There is no setting 'stepps'; did you mean steps"),
    "key of another command": ("[edit]\nrounds = 3", "line 2: There is no setting 'rounds'"),
    "table that is no command": ("[edti]\nsteps = 3", "line 1: There is no command 'edti'; did you mean edit"),
    "wrong type": ('steps = "many"', "line 1 sets --steps, and 'many' is not a whole number"),
    "table for a value": ("[edit.steps]\na = 1", "line 1: the setting steps is a table"),
}


@pytest.mark.parametrize(("text", "words"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_mistake_in_a_file_names_its_line(text: str, words: str) -> None:
    Path("kontext.toml").write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read_settings("edit", OPTIONS)
    assert words in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"], ids=["missing", "no text"])
def test_named_file_that_cannot_be_read_is_refused(content: bytes | None) -> None:
    if content is not None:
        Path("mine.toml").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"mine\.toml"):
        read_settings("edit", OPTIONS, "mine.toml")


def test_wrong_type_in_the_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KONTEXT_EDIT_STEPS", "many")
    with pytest.raises(InvalidInput, match="KONTEXT_EDIT_STEPS sets --steps, and 'many' is not a whole number"):
        read_settings("edit", OPTIONS)
