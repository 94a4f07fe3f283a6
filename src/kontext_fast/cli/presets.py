"""`kontext presets`: what can be applied to a pipeline, what it does to the output, and whether it runs here."""

from __future__ import annotations

import json as json_format
from typing import TYPE_CHECKING, Any

from kontext_fast.cli.options import Json

if TYPE_CHECKING:
    from kontext_fast.optimizations.machine import Machine

_READY = "ready"


def command(json: Json = False) -> None:
    """List presets and optimizations, with effect, needs and conflicts."""
    from kontext_fast.optimizations.machine import Machine

    machine = Machine.detect()
    optimizations, presets = _optimizations(machine), _presets(machine)
    if json:
        print(json_format.dumps({"presets": presets, "optimizations": optimizations}))
        return
    print("Presets")
    for preset in presets:
        print(f"  {preset['name']}: {preset['summary']}")
        for one in preset["optimizations"]:
            print(f"    {one['name']} {_written(one['parameters'])}".rstrip())
        for one in preset["on_random"] or ():
            if one in preset["optimizations"]:
                continue
            print(f"    on the checkpoint random: {one['name']} {_written(one['parameters'])}".rstrip())
        print(f"    here: {preset['refusal'] or _READY}")
    print("\nOptimizations")
    for one in optimizations:
        print(f"  {one['name']} ({one['effect']}): {one['summary']}")
        print(f"    here: {one['refusal'] or _READY}")
        for conflict in one["conflicts"]:
            print(f"    conflict: {conflict['between']} exclude each other, {conflict['because']}")


def _presets(machine: Machine) -> list[dict[str, Any]]:
    from kontext_fast.errors import KontextError
    from kontext_fast.optimizations.base import Optimization
    from kontext_fast.optimizations.plan import resolve
    from kontext_fast.optimizations.presets import PRESETS, Preset

    def listed(chosen: tuple[Optimization, ...]) -> list[dict[str, Any]]:
        return [{"name": one.name, "effect": one.effect.value, "parameters": one.parameters()} for one in chosen]

    def refusal(preset: Preset) -> str | None:
        try:
            resolve(preset, machine)
        except KontextError as error:
            return str(error)
        return None

    return [
        {
            "name": preset.name,
            "summary": preset.summary,
            "optimizations": listed(preset.optimizations),
            "on_random": None if preset.on_random is None else listed(preset.on_random),
            "refusal": refusal(preset),
        }
        for preset in PRESETS.values()
    ]


def _optimizations(machine: Machine) -> list[dict[str, Any]]:
    from kontext_fast.optimizations.registry import conflicts_by_name, discover

    conflicts = conflicts_by_name()
    return [
        {
            "name": name,
            "summary": found.summary,
            "effect": found().effect.value,
            "parameters": found().parameters(),
            "refusal": found().refusal(machine),
            "conflicts": [
                {
                    "other": side.other,
                    "between": side.conflict.between(side.declaring),
                    "because": side.conflict.because,
                }
                for side in conflicts[name]
            ],
        }
        for name, found in discover().items()
    ]


def _written(parameters: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in parameters.items() if value is not None)
