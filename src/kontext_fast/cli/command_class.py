"""How every command parses its line and shows its help: options may come from settings, and commands stand in groups.

Typer takes the classes below, so that a command is a plain function and declares nothing of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from typer.core import TyperCommand, TyperGroup

from kontext_fast.cli.output import say
from kontext_fast.cli.settings import ONE_CALL, Setting, misspelt_variables, option_name, read_settings


class Group(StrEnum):
    """Where a command stands in `kontext --help`, in the order of use: its module says so as `GROUP`."""

    START = "Start here"
    IMAGES = "Make images"
    MEASURE = "Measure and prove"
    DECIDE = "Report and decide"


HELP_OPTIONS = ("-h", "--help")
EVERYWHERE = (
    ("--config FILE", "Settings in TOML, instead of kontext.toml."),
    ("--debug", "Show the traceback of an error."),
)
"""Options that `main.run` takes off the line of any command before it is parsed."""


class Command(TyperCommand):
    """A command whose options fall back to settings, before their defaults."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        settings: dict[str, Setting] = {}
        if not ctx.resilient_parsing and not _asks_for_help(args):
            settings = read_settings(str(ctx.info_name), _options_of_all(ctx.parent.command), _config(ctx))
            ctx.default_map = {name: setting.value for name, setting in settings.items()}
        rest = super().parse_args(ctx, args)
        ctx.meta["settings"] = {
            name: setting
            for name, setting in settings.items()
            if (source := ctx.get_parameter_source(name)) is not None and source.name == "DEFAULT_MAP"
        }
        return rest

    def invoke(self, ctx: Any) -> Any:
        if not ctx.params.get("quiet"):
            hidden = {param.name for param in self.params if getattr(param, "hide_input", False)}
            used = [
                f"{option_name(name)} {'(hidden)' if name in hidden else _as_typed(setting.value)} ({setting.origin})"
                for name, setting in ctx.meta["settings"].items()
            ]
            if used:
                say(f"From settings: {', '.join(used)}.")
            for sentence in misspelt_variables(_options_of_all(ctx.parent.command)):
                say(sentence)
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        super().format_options(ctx, formatter)
        with formatter.section("With every command"):
            formatter.write_dl(EVERYWHERE)


class CommandGroup(TyperGroup):
    """`kontext` itself: the commands in groups, each with its summary."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.commands))
        for group in Group:
            rows = [
                (name.ljust(width), command.get_short_help_str(formatter.width))
                for name, command in self.commands.items()
                if getattr(command, "rich_help_panel", None) == group and not command.hidden
            ]
            if rows:
                with formatter.section(group):
                    formatter.write_dl(rows)


def _asks_for_help(args: list[str]) -> bool:
    return any(argument in HELP_OPTIONS for argument in args[: args.index("--") if "--" in args else None])


def _config(ctx: Any) -> Path | None:
    config: Path | None = ctx.find_root().obj
    return config


def _options_of_all(group: Any) -> Mapping[str, Mapping[str, Any]]:
    return {name: _options(command) for name, command in group.commands.items()}


def _options(command: Any) -> dict[str, Any]:
    """The type of each option that may be set, by name."""
    types = _types(command.callback)
    return {
        param.name: types[param.name]
        for param in command.params
        if param.param_type_name == "option" and param.name in types and param.name not in ONE_CALL
    }


@cache
def _types(function: Any) -> dict[str, Any]:
    return get_type_hints(function)


def _as_typed(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
