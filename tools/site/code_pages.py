"""Pages that the code writes: every command with its options, and every public name with its docstring."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import typer

import kontext_fast
from kontext_fast.cli.command_class import EVERYWHERE, Group
from kontext_fast.cli.main import build_app
from kontext_fast.optimizations.registry import discover

_REFERENCE = """# Python API

What stands here is imported from `kontext_fast` itself; each name loads on first use, so importing the package imports
no torch. Everything else in the package may change between versions. What the presets consist of stands in
[optimizations](optimizations.md).
"""

_EXTENDING = ("kontext_fast.optimizations.base.Optimization", "kontext_fast.metrics.base.Metric")
"""Bases of what is added in a file of its own."""


def commands_page() -> str:
    """Every command of `kontext` in the order of its help, with its arguments, options and defaults, as Markdown."""
    root = typer.main.get_command(build_app())
    lines = [
        "# Commands",
        "",
        "Rendered from the commands themselves; `kontext COMMAND --help` says the same. Options may also come from "
        "the [environment or a file](environment.md). Exit codes: 0 done; 1 a check that was asked for failed; "
        "2 bad input; 3 this machine cannot do it; 4 a bug; 130 interrupted. `--json` puts the result on the "
        "last line of stdout; progress goes to stderr.",
        "",
        *_table(("with every command", "what it does"), [(f"`{names}`", text) for names, text in EVERYWHERE]),
    ]
    for group in Group:
        members = {name: each for name, each in root.commands.items() if each.rich_help_panel == group}  # type: ignore[attr-defined]
        lines += ["", f"## {group}"] if members else []
        for name, command in members.items():
            lines += ["", *_command(name, command, root)]
    return "\n".join(lines) + "\n"


def _command(name: str, command: Any, root: Any) -> Iterator[str]:
    with root.make_context("kontext", [], resilient_parsing=True) as parent:
        context = command.make_context(name, [], parent=parent, resilient_parsing=True)
        usage = " ".join(command.collect_usage_pieces(context))
        records = [record for each in command.get_params(context) if (record := each.get_help_record(context))]
    yield from (f"### kontext {name}", "", str(command.help).strip(), "")
    yield from ("```sh", f"kontext {name} {usage}", "```", "")
    yield from _table(("argument or option", "what it does"), [(f"`{names}`", text) for names, text in records])


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> list[str]:
    """A Markdown table; what a cell may not hold is written otherwise."""
    lines = ["| {} | {} |".format(*head), "| --- | --- |"]
    for first, second in rows:
        # An asterisk or a bar of a help text is meant as such.
        text = re.sub(r"([*|<[\]])", r"\\\1", " ".join(second.split()))
        lines.append(f"| {first.replace('|', chr(92) + '|')} | {text} |")
    return lines


def reference_page() -> str:
    """Every public name for mkdocstrings to write out: where each is defined is asked of the object itself."""
    parts = [_REFERENCE]
    # What is called first, then what it takes and gives.
    public = sorted((name for name in kontext_fast.__all__ if not name.startswith("__")), key=str.swapcase)
    parts += [_entry(_definition(name), name) for name in public]
    parts += [
        "## Errors",
        "::: kontext_fast.errors\n    options:\n      show_root_toc_entry: false\n      show_root_heading: false",
    ]
    parts += ["## To extend it", *(_entry(path, path.rpartition(".")[2]) for path in _EXTENDING)]
    parts += ["## Techniques", 'Each is an element of a plan: `accelerate(pipe, [Engine(precision="fp8"), ...])`.']
    for technique in discover().values():
        # What every technique declares is said once, of their base.
        own = [each.name for each in fields(technique)] if is_dataclass(technique) else []
        parts.append(_entry(f"{technique.__module__}.{technique.__name__}", technique.__name__, 3, own))
    return "\n\n".join(parts) + "\n"


def _definition(name: str) -> str:
    """The module in which a public name is defined, with the name; a value is asked where the package takes it from."""
    member = getattr(kontext_fast, name)
    return f"{getattr(member, '__module__', None) or kontext_fast._HOME[name]}.{name}"


def _entry(path: str, name: str, level: int = 2, members: Sequence[str] | None = None) -> str:
    lines = [f"::: {path}", "    options:", f"      heading: {name}", f"      heading_level: {level}"]
    return "\n".join([*lines, *([] if members is None else [f"      members: {list(members)}"])])
