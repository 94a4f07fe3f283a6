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
from kontext_fast.cli.command_class import Command, CommandGroup, Group
from kontext_fast.discovery import modules

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
    monkeypatch.setattr(front_door, "_build_app", lambda: app)
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
