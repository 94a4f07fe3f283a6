from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from kontext_fast import cli
from kontext_fast.cli import main as front_door
from kontext_fast.errors import Cancelled, GateFailed, InvalidInput, KontextError, OutOfMemory, Refused
from kontext_fast.version import __version__
from tests.conftest import AddPlugin

START = "from kontext_fast.cli.main import main; main()"


def kontext_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", START, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_help_is_quick_and_lists_every_command() -> None:
    # Time of the processor, since a busy machine makes every program wait; the quickest of three, since the first may
    # compile modules to bytecode.
    times = []
    for _ in range(3):
        before = os.times()
        done = kontext_process("--help")
        after = os.times()
        times.append(after.children_user - before.children_user + after.children_system - before.children_system)
    assert done.returncode == 0
    for command in ("edit", "generate", "doctor"):
        assert f"\n  {command} " in done.stdout
    assert min(times) < 1.0


COMMAND = """
from kontext_fast.cli.command_class import Group

GROUP = Group.IMAGES


def command(name: str) -> None:
    \"\"\"Greet somebody.\"\"\"
    print(f"hello {name}")
"""


def test_new_command_is_listed_and_runs(add_plugin: AddPlugin, kontext: Any) -> None:
    add_plugin(cli, "dummy_greeting", COMMAND)
    assert re.search("^  dummy-greeting  +Greet somebody", kontext("--help").out, re.MULTILINE)
    assert "Greet somebody" in kontext("dummy-greeting", "--help").out
    assert kontext("dummy-greeting", "you").out == "hello you\n"
    add_plugin(cli, "dummy_without_a_group", COMMAND.replace("GROUP = ", ""))
    assert "dummy_without_a_group is in no group of the help; set GROUP" in kontext("--help").err


def test_documents_name_every_command(kontext: Any) -> None:
    commands = re.findall(r"^  ([a-z][a-z-]*)  +[A-Z]", kontext("--help").out, re.MULTILINE)
    assert "edit" in commands
    root = Path(__file__).parents[2]
    documents = "".join(path.read_text() for path in (root / "README.md", *(root / "docs").glob("*.md")))
    assert [name for name in commands if f"kontext {name}" not in documents] == []


@pytest.mark.parametrize("arguments", [["--help"], ["edit", "--help"], ["generate", "--help"], ["doctor", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from kontext_fast.cli.main import run; run(sys.argv[1:]); "
        # typer needs pydantic for the help of a command.
        "unneeded = {'pydantic.main'} if len(sys.argv) == 2 else set(); "
        "sys.exit(', '.join(sys.modules.keys() & {'torch', 'diffusers', 'transformers', 'PIL', 'numpy', *unneeded}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == ""


def test_no_arguments_mean_help(kontext: Any) -> None:
    assert kontext() == kontext("--help")


def test_version_is_printed(kontext: Any) -> None:
    outcome = kontext("--version")
    assert (outcome.code, outcome.out) == (0, f"kontext-fast {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["edit"], ["edit", "a.png", "x", "--steps", "many"], ["edit", "--nonsense"]],
)
def test_usage_error_is_one_line_that_names_the_help(kontext: Any, arguments: list[str]) -> None:
    outcome = kontext(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) == 1
    assert "--help" in outcome.err


def failing(error: BaseException) -> Callable[[], typer.Typer]:
    def command() -> None:
        raise error

    def build() -> typer.Typer:
        app = typer.Typer()
        app.callback()(lambda: None)
        app.command("fail")(command)
        return app

    return build


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (GateFailed("The answer is no."), 1, "The answer is no."),
        (InvalidInput("Give another one."), 2, "Give another one."),
        (Refused("Buy a GPU."), 3, "Buy a GPU."),
        (OutOfMemory("Ask for less."), 3, "Ask for less."),
        (torch.OutOfMemoryError("CUDA out of memory"), 3, "The memory ran out"),
        (MemoryError(), 3, "The memory ran out"),
        (KontextError("Our fault."), 4, "Our fault."),
        (ZeroDivisionError("division\nby zero"), 4, "bug in kontext-fast (ZeroDivisionError: division by zero)"),
        (Cancelled("Stopped."), 130, "Stopped."),
        (KeyboardInterrupt(), 130, "Interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_error_is_one_line_and_its_code(
    kontext: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    monkeypatch.setattr(front_door, "build_app", failing(error))
    outcome = kontext("fail")
    assert (outcome.code, outcome.out) == (code, "")
    assert len(outcome.err.splitlines()) == 1
    assert words in outcome.err
    debugged = kontext("fail", "--debug")
    assert debugged.code == code
    assert "Traceback" in debugged.err
    assert debugged.err.endswith(outcome.err)


def test_debug_is_an_option_only_before_a_lone_dash_dash() -> None:
    assert front_door._without_debug(["edit", "--debug", "a"]) == (["edit", "a"], True)
    assert front_door._without_debug(["edit", "--", "--debug"]) == (["edit", "--", "--debug"], False)


def test_closed_pipe_is_no_error() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", START, "--help"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(60) == 0


def test_closed_stdout_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" -c "{START}" --version >&-'],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_with_one_sentence(number: signal.Signals) -> None:
    waiting = "import kontext_fast.cli.main as main, sys, time; main._invoke = lambda *_: (print('ready', flush=True), "
    waiting += "time.sleep(600)); main.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", waiting],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (130, "Interrupted; nothing was left half-written.\n")


@pytest.mark.parametrize("number", ["inf", "nan", "-inf"])
def test_number_that_is_not_finite_is_refused(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert front_door.run(["compare", "before", "after", "--threshold", number]) == 2
    assert capsys.readouterr().err == f"--threshold is {number}; give a finite number.\n"
