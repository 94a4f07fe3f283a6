"""The command `kontext`: finds its subcommands and turns every error into one line and an exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from kontext_fast import cli
from kontext_fast.cli.command_class import HELP_OPTIONS, Command, CommandGroup, Group
from kontext_fast.discovery import modules
from kontext_fast.errors import Cancelled, Caution, InvalidInput, KontextError, Refused
from kontext_fast.pipeline.load import NOISY_LOGGERS
from kontext_fast.validation import first_mistake
from kontext_fast.version import __version__

_DEBUG = "--debug"
_CONFIG = "--config"

_COMPLETE = "_KONTEXT_COMPLETE"
"""Set by the script that `kontext --install-completion` gives to the shell."""

# Typer keeps the base of its usage errors private.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def main() -> None:
    """Entry point of the installed command `kontext`."""
    _open_closed_streams()
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        # As Ctrl-C, so that everything that is open is left as it should be; serve has a handler of its own.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(sys.argv[1:]))


def _open_closed_streams() -> None:
    """A shell may start a command without stdout or stderr (`>&-`), for which Python has None."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the end


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; an error is one sentence on stderr.

    `--debug` and `--config FILE` are understood anywhere before a lone `--`, so that they can be added to the end of a
    line.
    """
    arguments, debug = _without_debug(arguments)
    _silence_libraries()
    try:
        arguments, config = _without_config(arguments)
        code = _invoke(arguments or ["--help"], config)
        # Here and not at interpreter exit, where a closed pipe can no longer be handled.
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader closed the pipe; what is still buffered must not fail again at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the one place that handles every error
        if debug:
            traceback.print_exc()
        code, sentence = _explain(error)
        print(" ".join(sentence.split()), file=sys.stderr)
        return code


def _invoke(arguments: list[str], config: Path | None) -> int:
    command = typer.main.get_command(build_app())
    if _COMPLETE in os.environ:
        command.main(prog_name="kontext")
    # Not `main`, which prints several lines of its own for Ctrl-C and usage errors.
    try:
        with command.make_context("kontext", arguments, obj=config) as context:
            command.invoke(context)
    except typer.Exit as leave:
        return leave.exit_code
    return 0


def build_app() -> typer.Typer:
    app = typer.Typer(
        cls=CommandGroup,
        rich_markup_mode=None,
        context_settings={"help_option_names": HELP_OPTIONS},
        help="Fast FLUX.1-Kontext image editing, with proof.",
    )
    app.callback()(_global_options)
    for name, module in modules(cli).items():
        if (command := getattr(module, "command", None)) is not None:
            app.command(name.replace("_", "-"), cls=Command, rich_help_panel=_group_of(module))(command)
    return app


def _group_of(module: ModuleType) -> Group:
    group = getattr(module, "GROUP", None)
    if not isinstance(group, Group):
        raise KontextError(
            f"The command {module.__name__} is in no group of the help; set GROUP to a cli.command_class.Group."
        )
    return group


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"kontext-fast {__version__}")
        raise typer.Exit


def _global_options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(_CONFIG, metavar="FILE", help="Settings in TOML, instead of kontext.toml.", show_default=False),
    ] = None,
    debug: Annotated[bool, typer.Option(_DEBUG, help="Show the traceback of an error.")] = False,
) -> None:
    """Only for `--help`: a callback handles the first option, and `run` removes the others before parsing."""


def _without_debug(arguments: list[str]) -> tuple[list[str], bool]:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:end] if argument != _DEBUG]
    return kept + arguments[end:], len(kept) < end


def _without_config(arguments: list[str]) -> tuple[list[str], Path | None]:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept: list[str] = []
    config: str | None = None
    words = iter(arguments[:end])
    for word in words:
        if word == _CONFIG:
            config = next(words, "")
        elif word.startswith(f"{_CONFIG}="):
            config = word.partition("=")[2]
        else:
            kept.append(word)
    if config == "":
        raise InvalidInput(f"{_CONFIG} needs a file; write for example {_CONFIG} kontext.toml.")
    return kept + arguments[end:], None if config is None else Path(config)


def _silence_libraries() -> None:
    """Their remarks on missing extras would hide our one sentence; settings of the user are kept."""
    # Commands show these themselves, each once.
    warnings.simplefilter("ignore", Caution)
    # Of pixels that are not finite, which an edit refuses by the name of their weights.
    warnings.filterwarnings("ignore", "invalid value encountered in cast", RuntimeWarning)
    for variable in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(variable, "error")
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def _explain(error: BaseException) -> tuple[int, str]:
    """Exit code and sentence for the error that ended a command."""
    if isinstance(error, KontextError):
        return error.exit_code, str(error)
    if isinstance(error, _UsageError):
        return InvalidInput.exit_code, _usage_sentence(error)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Cancelled.exit_code, "Interrupted; nothing was left half-written."
    if isinstance(error, MemoryError) or _is_gpu_memory_error(error):
        return Refused.exit_code, "The memory ran out; ask for less work at once, or free what other programs hold."
    return KontextError.exit_code, (
        f"This is a bug in kontext-fast ({type(error).__name__}: {error}); "
        f"please report it with the output of the same command and {_DEBUG}."
    )


def _usage_sentence(error: Any) -> str:
    context = error.ctx
    place = f"see {context.command_path if context else 'kontext'} --help."
    if isinstance(error.__cause__, ValidationError):
        # The short of two long names: the other one is that of diffusers.
        long = [name for name in error.param.opts if name.startswith("--")]
        option = long[0] if error.param.param_type_name == "option" else error.param.display_name_raw
        return f"{option}: {first_mistake(error.__cause__)[1]}; {place}"
    message = error.format_message().rstrip(".")
    return message if message.endswith("?") else f"{message}; {place}"


def _is_gpu_memory_error(error: BaseException) -> bool:
    # Not imported here, since that takes seconds.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)
