"""`kontext presets`: what can be applied to a pipeline, what it does to the output, and whether it runs here."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kontext_fast.cli import options
from kontext_fast.cli.command_class import Group
from kontext_fast.cli.output import print_json, tick
from kontext_fast.optimizations import DEFAULT_PRESET

if TYPE_CHECKING:
    from kontext_fast.optimizations.base import Optimization
    from kontext_fast.optimizations.presets import Preset
    from kontext_fast.pipeline.device import Machine

GROUP = Group.START

_MAIN = ("baseline", "faithful", "balanced", "fast", "turbo", "low_memory")
_EFFECTS = {"exact": "the same", "numeric": "rounding", "lossy": "lossy"}
_BY_EFFECT = ("exact", "numeric", "lossy")


def command(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Details of one: a preset, turbo(computed=5), or a TOML file.",
            show_default=False,
            autocompletion=options.preset_names,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """What makes an edit faster, and what that changes."""
    from kontext_fast.optimizations.presets import PRESETS, find_preset
    from kontext_fast.pipeline.device import Machine

    if name is not None:
        preset = find_preset(name)
        described = _described(preset, Machine.detect())
        if json:
            print_json(described)
        else:
            _print_details(described)
        return
    machine = Machine.detect()
    presets = [_described(preset, machine) for preset in PRESETS.values()]
    if json:
        print_json({"presets": presets, "optimizations": _optimizations(machine)})
    else:
        _print_rows(presets)


def _print_rows(presets: list[dict[str, Any]]) -> None:
    """The six to choose from, and the names of the rest."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from kontext_fast.optimizations.presets import H100_DATES

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for title in ("preset", "H100", "memory", "images", "what it is"):
        table.add_column(title, no_wrap=title != "what it is")
    by_name = {preset["name"]: preset for preset in presets}
    rows = [by_name[name] for name in _MAIN]
    for preset in rows:
        seconds, memory = preset["h100_seconds"], preset["needs_gib"]
        color = "" if preset["refusal"] is None else "red"
        cells = (
            preset["name"],
            f"{seconds:g} s" if seconds else "",
            f"{memory} GiB",
            _EFFECTS[preset["effect"]],
            preset["summary"],
        )
        table.add_row(*(Text(cell, style=color) for cell in cells))
    Console(highlight=False).print(table)
    print(
        f"\nThe default is {DEFAULT_PRESET}. Seconds: an edit at 1024x1024 in 28 steps, random weights, {H100_DATES}."
    )
    for preset in rows:
        if preset["refusal"] is not None:
            tick(False, preset["refusal"])
    print(f"More: {', '.join(name for name in by_name if name not in _MAIN)}.")
    print('Details: kontext presets NAME. Other parameters: --preset "turbo(computed=5)".')


def _print_details(preset: dict[str, Any]) -> None:
    name = preset["name"]
    print(f"{name}: {preset['summary']}")
    print(f"  images: {_EFFECTS[preset['effect']]}")
    for optimization in preset["optimizations"]:
        print(f"  {_with_parameters(optimization)} ({optimization['effect']}): {optimization['summary']}")
    for optimization in preset["on_random"] or ():
        if optimization not in preset["optimizations"]:
            print(f"  on the checkpoint random: {_with_parameters(optimization)}")
    for optimization in preset["on_cuda"]:
        print(f"  on CUDA: {_with_parameters(optimization)} ({optimization['effect']}): {optimization['summary']}")
    for conflict in preset["conflicts"]:
        print(f"  conflict: {conflict['between']} exclude each other, {conflict['because']}")
    if preset["h100_seconds"]:
        print(f"  on an H100: {preset['h100_seconds']:g} s for an edit at 1024x1024 in 28 steps")
    if preset["needs_gib"]:
        print(f"  GPU memory for FLUX.1-Kontext-dev: {preset['needs_gib']} GiB")
    tick(preset["refusal"] is None, preset["refusal"] or "runs here")
    typed = shlex.quote(name)
    print(f'\nkontext edit photo.jpg "make the car red" --preset {typed}')
    if preset["effect"] == "lossy":
        print(f"kontext verify --preset {typed} --dataset FOLDER")


def _described(preset: Preset, machine: Machine) -> dict[str, Any]:
    from kontext_fast.optimizations.presets import H100_SECONDS, needed_gib

    effects = [optimization.effect.value for optimization in preset.optimizations]
    return {
        "name": preset.name,
        "summary": preset.summary,
        "effect": max(effects, key=_BY_EFFECT.index, default="exact"),
        "h100_seconds": H100_SECONDS.get(preset.name),
        "needs_gib": needed_gib(preset.name, preset.optimizations),
        "optimizations": _as_data(preset.optimizations),
        "on_random": None if preset.on_random is None else _as_data(preset.on_random),
        "on_cuda": _as_data(preset.on_cuda),
        "refusal": _refusal(preset, machine),
        "conflicts": _conflicts(preset.name),
    }


def _as_data(optimizations: Iterable[Optimization]) -> list[dict[str, Any]]:
    return [
        {
            "name": optimization.name,
            "effect": optimization.effect.value,
            "summary": optimization.summary,
            "parameters": optimization.parameters_for_people(),
        }
        for optimization in optimizations
    ]


def _refusal(preset: Preset, machine: Machine) -> str | None:
    from kontext_fast.errors import KontextError
    from kontext_fast.optimizations.presets import resolve

    try:
        resolve(preset, machine)
    except KontextError as error:
        return str(error)
    return None


def _conflicts(name: str) -> list[dict[str, str]]:
    """Of an optimization with what; none of a preset of several."""
    from kontext_fast.optimizations.registry import conflicts_by_name

    return [
        {"other": side.other, "between": side.conflict.between(side.declaring), "because": side.conflict.because}
        for side in conflicts_by_name().get(name, ())
    ]


def _optimizations(machine: Machine) -> list[dict[str, Any]]:
    from kontext_fast.optimizations.registry import discover

    return [
        {
            "name": name,
            "summary": optimization.summary,
            "effect": optimization.effect.value,
            "parameters": optimization.parameters(),
            "refusal": optimization.refusal(machine),
            "conflicts": _conflicts(name),
        }
        for name, optimization in ((name, technique()) for name, technique in discover().items())
    ]


def _with_parameters(optimization: dict[str, Any]) -> str:
    parameters = (f"{key}={value}" for key, value in optimization["parameters"].items() if value is not None)
    return f"{optimization['name']} {', '.join(parameters)}".rstrip()
