"""How every command parses its line and shows its help: options may come from settings, and commands stand in groups.

Typer takes the classes below, so that a command is a plain function and declares nothing of this.

Every option of every command is a setting under its own name, but for those of `ONE_CALL`: `--preset` is
KONTEXT_PRESET in the environment and `preset = ` in the file. What is for one command alone is KONTEXT_EDIT_PRESET, and
stands under `[edit]`. First comes the command line, then the environment, then the file, then the default; in the
environment and in the file, what is for one command comes first. A list is written with commas, in a file also in
brackets. What is used is printed with its origin, but for the value of an option with `hide_input`.

The file is the one of `--config` or KONTEXT_CONFIG; else the first of kontext.toml here, `[tool.kontext-fast]` of
pyproject.toml here, and kontext-fast/kontext.toml in the user's folder of configurations.
"""

from __future__ import annotations

import difflib
import math
import os
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from typer.core import TyperCommand, TyperGroup

from kontext_fast.cli.output import say
from kontext_fast.discovery import unknown_name
from kontext_fast.errors import InvalidInput
from kontext_fast.toml_lines import TOMLDecodeError, line_of, parse_toml


class Group(StrEnum):
    """Where a command stands in `kontext --help`, in the order of use: its module says so as `GROUP`."""

    START = "Start here"
    IMAGES = "Make images"
    SERVE = "Serve"
    MEASURE = "Measure and prove"
    DECIDE = "Report and decide"


HELP_OPTIONS = ("-h", "--help")
EVERYWHERE = (
    ("--config FILE", "Settings in TOML, instead of kontext.toml."),
    ("--debug", "Show the traceback of an error."),
)
"""Options that `main.run` takes off the line of any command before it is parsed."""

PREFIX = "KONTEXT_"
CONFIG_VARIABLE = "KONTEXT_CONFIG"

ONE_CALL = frozenset({"json", "out", "resume", "csv", "open_page", "manifest", "facts"})
"""Options that say what one call is to do, which a setting for all calls would only hide."""

_FILE_NAME = "kontext.toml"
_PYPROJECT_TABLE = "tool.kontext-fast"


class Command(TyperCommand):
    """A command whose options fall back to settings, before their defaults."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        settings: dict[str, Setting] = {}
        if not ctx.resilient_parsing and not _asks_for_help(args):
            settings = read_settings(str(ctx.info_name), _options_of_all(ctx.parent.command), _config(ctx))
            ctx.default_map = {name: setting.value for name, setting in settings.items()}
        rest = super().parse_args(ctx, args)
        for name, value in ctx.params.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InvalidInput(f"{option_name(name)} is {value}; give a finite number.")
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


@dataclass(frozen=True)
class Setting:
    """A value from elsewhere than the command line."""

    value: Any
    """Of the option's own type."""
    origin: str
    """`KONTEXT_PRESET`, or `kontext.toml, line 3`."""


@dataclass(frozen=True)
class SettingsFile:
    """A TOML file with options at the top and a table for each command that has its own."""

    name: str
    """As messages call it."""
    text: str
    table: Mapping[str, Any]
    prefix: str = ""
    """Of the table in the file, with the dot: `tool.kontext-fast.`."""

    def origin(self, key: str) -> str:
        """The place of a dotted key, as people look for it."""
        line = line_of(self.text, self.prefix + key)
        return self.name if line is None else f"{self.name}, line {line}"


def read_settings(
    command: str, options: Mapping[str, Mapping[str, Any]], config: str | Path | None = None
) -> dict[str, Setting]:
    """The settings of the options of `command`, by the option's name with underscores.

    `options`: of every command, the type of each option that may be set. `config` is a file that the user named.
    Raises InvalidInput for a file that cannot be read, an unknown key in it, or a value of another type.
    """
    file = find_file(config)
    if file is not None:
        _check_keys(file, options)
    elif not any(variable.startswith(PREFIX) for variable in os.environ):
        return {}
    return _read(command, options[command], file)


def find_file(config: str | Path | None = None) -> SettingsFile | None:
    """The file of the settings, or None where there is none. Raises InvalidInput where a named one cannot be read."""
    if config is None:
        config = os.environ.get(CONFIG_VARIABLE) or None
    if config is not None:
        return _read_toml(Path(config))
    for path in (Path(_FILE_NAME), _user_file()):
        if path.is_file():
            return _read_toml(path)
        if path.parent == Path() and (file := _of_pyproject()) is not None:
            return file
    return None


def misspelt_variables(options: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """One sentence for each variable of the environment that looks like a setting and is none."""
    known = {CONFIG_VARIABLE}
    for command, types in options.items():
        for name in types:
            known |= {f"{PREFIX}{name}".upper(), f"{PREFIX}{command}_{name}".replace("-", "_").upper()}
    for variable in os.environ:
        if variable.startswith(PREFIX) and variable not in known:
            close = difflib.get_close_matches(variable, known, n=1, cutoff=0.85)
            if close:
                yield f"{variable} sets nothing; did you mean {close[0]}?"


def _read(command: str, types: Mapping[str, Any], file: SettingsFile | None) -> dict[str, Setting]:
    from pydantic import BeforeValidator, ValidationError, create_model
    from pydantic_settings import (
        BaseSettings,
        EnvSettingsSource,
        NoDecode,
        PydanticBaseSettingsSource,
        SettingsConfigDict,
    )

    from kontext_fast.validation import complaint

    class Settings(BaseSettings):
        model_config = SettingsConfigDict(env_ignore_empty=True)

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            # The sources are read one by one below, since the values would not say which of them they are from.
            return (init_settings,)

    # pydantic-settings would read a list in the environment as JSON.
    fields: dict[str, Any] = {
        name: (Annotated[kind | None, NoDecode, BeforeValidator(_split)] if _is_list(kind) else kind | None, None)
        for name, kind in types.items()
    }
    model = create_model("Settings", __base__=Settings, **fields)
    settings: dict[str, Setting] = {}
    for prefix in (f"{PREFIX}{command.replace('-', '_').upper()}_", PREFIX):
        for name, value in EnvSettingsSource(model, env_prefix=prefix)().items():
            settings.setdefault(name, Setting(value, f"{prefix}{name.upper()}"))
    if file is not None:
        for table, before in ((file.table.get(command, {}), f"{command}."), (file.table, "")):
            for key, value in table.items():
                if (name := key.replace("-", "_")) in types:
                    settings.setdefault(name, Setting(value, file.origin(before + key)))
    try:
        values = model(**{name: setting.value for name, setting in settings.items()})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        origin, option = settings[name].origin, option_name(name)
        raise InvalidInput(f"{origin} sets {option}, and {complaint(first)}; give another value.") from None
    return {name: Setting(getattr(values, name), setting.origin) for name, setting in settings.items()}


def option_name(name: str) -> str:
    """`true_cfg` as it is typed: `--true-cfg`."""
    return f"--{name.replace('_', '-')}"


def _is_list(kind: Any) -> bool:
    return any(get_origin(part) is list for part in (kind, *get_args(kind)))


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _user_file() -> Path:
    if sys.platform == "win32":
        folder = Path(os.environ.get("APPDATA") or Path.home())
    else:
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return folder / "kontext-fast" / _FILE_NAME


def _of_pyproject() -> SettingsFile | None:
    path = Path("pyproject.toml")
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = tomllib.loads(text).get("tool", {}).get("kontext-fast")
    except (OSError, UnicodeDecodeError, TOMLDecodeError, RecursionError):
        # It is the file of another program, which says what is wrong with it.
        return None
    return None if table is None else SettingsFile(path.name, text, table, f"{_PYPROJECT_TABLE}.")


def _read_toml(path: Path) -> SettingsFile:
    try:
        text = path.read_text(encoding="utf-8-sig")
        return SettingsFile(path.name, text, parse_toml(text))
    except TOMLDecodeError as error:
        raise InvalidInput(f"{path} is not valid TOML ({error}); correct it, or name another file.") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not a text in UTF-8; give a TOML file of settings.") from None
    except OSError as error:
        raise InvalidInput(f"The settings {path} cannot be read ({error.strerror}); give a TOML file.") from None


def _check_keys(file: SettingsFile, options: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise InvalidInput for a key that is neither an option nor a command."""
    of_any = {name for types in options.values() for name in types}
    for key, value in file.table.items():
        if isinstance(value, dict):
            if key not in options:
                raise InvalidInput(f"{file.origin(key)}: {unknown_name('command', key, options)}")
            _check_names(file, value, options[key], f"{key}.")
    _check_names(file, {key: value for key, value in file.table.items() if not isinstance(value, dict)}, of_any, "")


def _check_names(file: SettingsFile, table: Mapping[str, Any], known: Iterable[str], before: str) -> None:
    names = {name.replace("_", "-") for name in known}
    for key, value in table.items():
        if key.replace("_", "-") not in names:
            raise InvalidInput(f"{file.origin(before + key)}: {unknown_name('setting', key, sorted(names))}")
        if isinstance(value, dict):
            raise InvalidInput(f"{file.origin(before + key)}: the setting {key} is a table here; give one value.")
