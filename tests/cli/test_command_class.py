"""What every command line shares: settings below flags, help in groups, short summaries, completion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from kontext_fast import cli
from kontext_fast.cli import main as front_door
from kontext_fast.cli.command_class import Command, CommandGroup, Group, read_settings
from kontext_fast.discovery import modules
from kontext_fast.errors import InvalidInput

COMMANDS = {name: module for name, module in modules(cli).items() if hasattr(module, "command")}


def test_flag_precedes_environment_precedes_file(kontext: Any, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("kontext.toml").write_text("steps = 0\nguidance = -3\n")
    assert "guidance is -3" in kontext("edit", picture, "x", "--steps", "1", "--checkpoint", "tiny").err
    monkeypatch.setenv("KONTEXT_GUIDANCE", "-2")
    assert "guidance is -2" in kontext("edit", picture, "x", "--steps", "1", "--checkpoint", "tiny").err
    outcome = kontext("edit", picture, "x", "--steps", "1", "--guidance", "-1", "--checkpoint", "tiny")
    assert "guidance is -1" in outcome.err


def test_settings_are_printed_with_their_origin(kontext: Any, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("kontext.toml").write_text('seed = 3\n\n[edit]\nguidance = -1\ncheckpoint = "tiny"\n')
    monkeypatch.setenv("KONTEXT_STEPS", "1")
    first, *_ = kontext("edit", picture, "x", "--seed", "4").err.splitlines()
    assert first == (
        "From settings: --steps 1 (KONTEXT_STEPS), --guidance -1.0 (kontext.toml, line 4), "
        "--checkpoint tiny (kontext.toml, line 5)."
    )


def test_misspelt_variable_is_pointed_out(kontext: Any, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KONTEXT_PRESETT", "fast")
    monkeypatch.setenv("KONTEXT_FAST_CACHE", "cache")
    errors = kontext("edit", "missing.png", "x").err.splitlines()
    assert errors[0] == "KONTEXT_PRESETT sets nothing; did you mean KONTEXT_PRESET?"
    assert len(errors) == 2


def test_named_file_of_settings_is_used_anywhere_on_the_line(kontext: Any, picture: Path) -> None:
    Path("mine.toml").write_text("guidance = -7\n")
    for line in (
        ["--config", "mine.toml", "edit", picture, "x"],
        ["edit", picture, "x", "--config", "mine.toml"],
        ["edit", "--config=mine.toml", picture, "x"],
    ):
        assert "guidance is -7" in kontext(*line).err
    assert "--config needs a file" in kontext("edit", picture, "x", "--config").err


def test_help_is_shown_even_with_broken_settings(kontext: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KONTEXT_STEPS", "many")
    for flag in ("-h", "--help"):
        outcome = kontext("edit", flag)
        assert (outcome.code, outcome.err) == (0, "")


def test_hidden_value_is_not_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(api_key: Annotated[str, typer.Option(hide_input=True)] = "", port: int = 1) -> None:
        """Serve."""

    app = typer.Typer(cls=CommandGroup, rich_markup_mode=None)
    app.command("serve", cls=Command)(serve)
    app.command("other", cls=Command)(lambda: None)
    monkeypatch.setattr(front_door, "build_app", lambda: app)
    monkeypatch.setenv("KONTEXT_API_KEY", "secret-of-mine")
    monkeypatch.setenv("KONTEXT_SERVE_PORT", "8000")
    assert front_door.run(["serve"]) == 0
    said = capsys.readouterr().err
    assert "--api-key (hidden) (KONTEXT_API_KEY)" in said
    assert "--port 8000 (KONTEXT_SERVE_PORT)" in said
    assert "secret-of-mine" not in said


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_group_and_one_line_of_help(kontext: Any, name: str) -> None:
    assert isinstance(COMMANDS[name].GROUP, Group)
    listed = kontext("-h").out
    (line,) = [line for line in listed.splitlines() if line.startswith(f"  {name.replace('_', '-')} ")]
    assert line.endswith(".")
    assert len(line) < 80
    outcome = kontext(name.replace("_", "-"), "-h")
    assert outcome.code == 0
    assert "--config FILE" in outcome.out


def test_commands_stand_in_the_order_of_use(kontext: Any) -> None:
    listed = kontext("-h").out
    positions = [listed.index(f"{group}:") for group in Group]
    assert positions == sorted(positions)
    assert positions[0] < listed.index("  demo ") < listed.index("  doctor ") < positions[1] < listed.index("  edit ")


def test_shell_completes_commands_and_options() -> None:
    def completed(line: str) -> list[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "_KONTEXT_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
        }
        done = subprocess.run(
            [sys.executable, "-c", "from kontext_fast.cli.main import main; main()"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        return done.stdout.split()

    assert completed("kontext ge") == ["generate"]
    assert "--preset" in completed("kontext edit --pre")


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
