"""`kontext presets`: what can be applied to a pipeline, what it does to the output, and whether it runs here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from kontext_fast.cli.command_class import Group
from kontext_fast.cli.options import Json
from kontext_fast.cli.output import print_json

if TYPE_CHECKING:
    from kontext_fast.optimizations.base import Optimization
    from kontext_fast.optimizations.presets import Preset
    from kontext_fast.pipeline.device import Machine

_READY = "ready"

GROUP = Group.START


def command(json: Json = False) -> None:
    """What makes an edit faster, and what that changes."""
    from kontext_fast.pipeline.device import Machine

    machine = Machine.detect()
    optimizations, presets = _optimizations(machine), _presets(machine)
    if json:
        print_json({"presets": presets, "optimizations": optimizations})
        return
    print("Presets")
    for preset in presets:
        print(f"  {preset['name']}: {preset['summary']}")
        for optimization in preset["optimizations"]:
            print(f"    {_with_parameters(optimization)}")
        for optimization in preset["on_random"] or ():
            if optimization not in preset["optimizations"]:
                print(f"    on the checkpoint random: {_with_parameters(optimization)}")
        print(f"    here: {preset['refusal'] or _READY}")
    print("\nOptimizations")
    for optimization in optimizations:
        print(f"  {optimization['name']} ({optimization['effect']}): {optimization['summary']}")
        print(f"    here: {optimization['refusal'] or _READY}")
        for conflict in optimization["conflicts"]:
            print(f"    conflict: {conflict['between']} exclude each other, {conflict['because']}")


def _presets(machine: Machine) -> list[dict[str, Any]]:
    from kontext_fast.optimizations.presets import PRESETS

    return [
        {
            "name": preset.name,
            "summary": preset.summary,
            "optimizations": _as_data(preset.optimizations),
            "on_random": None if preset.on_random is None else _as_data(preset.on_random),
            "refusal": _refusal(preset, machine),
        }
        for preset in PRESETS.values()
    ]


def _as_data(optimizations: Iterable[Optimization]) -> list[dict[str, Any]]:
    return [
        {
            "name": optimization.name,
            "effect": optimization.effect.value,
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


def _optimizations(machine: Machine) -> list[dict[str, Any]]:
    from kontext_fast.optimizations.registry import conflicts_by_name, discover

    conflicts = conflicts_by_name()
    return [
        {
            "name": name,
            "summary": optimization.summary,
            "effect": optimization.effect.value,
            "parameters": optimization.parameters(),
            "refusal": optimization.refusal(machine),
            "conflicts": [
                {
                    "other": side.other,
                    "between": side.conflict.between(side.declaring),
                    "because": side.conflict.because,
                }
                for side in conflicts[name]
            ],
        }
        for name, optimization in ((name, technique()) for name, technique in discover().items())
    ]


def _with_parameters(optimization: dict[str, Any]) -> str:
    parameters = (f"{key}={value}" for key, value in optimization["parameters"].items() if value is not None)
    return f"{optimization['name']} {', '.join(parameters)}".rstrip()
