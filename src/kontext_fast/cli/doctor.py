"""`kontext doctor`: what this machine can run, and why not."""

from __future__ import annotations

import platform
import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kontext_fast.cli.command_class import Group
from kontext_fast.cli.options import Json
from kontext_fast.cli.output import print_json, tick
from kontext_fast.errors import KontextError, Refused
from kontext_fast.optimizations import DEFAULT_PRESET
from kontext_fast.pipeline.load import KONTEXT_DEV, choices
from kontext_fast.version import __version__

if TYPE_CHECKING:
    from kontext_fast.pipeline.device import Machine

_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "huggingface-hub")

_GIB = 2**30

GROUP = Group.START


def command(json: Json = False) -> None:
    """What this machine can run, and what to type."""
    from kontext_fast.bench.environment import installed_version
    from kontext_fast.pipeline.device import Machine

    machine = Machine.detect()
    checkpoints = _checkpoints(machine)
    findings: dict[str, Any] = {
        "kontext_fast": __version__,
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in _PACKAGES},
        "machine": asdict(machine),
        "checkpoints": checkpoints,
        "checkpoint_choices": choices(),
        "presets": _presets(machine),
    }
    if json:
        print_json(findings)
    else:
        _print(findings, machine)
    if (reason := checkpoints["tiny"]) is not None:
        raise Refused(reason)


def _checkpoints(machine: Machine) -> dict[str, str | None]:
    """Why each checkpoint cannot be loaded, or None where it is ready."""
    return {"tiny": _why_not_tiny(), "random": _why_not_random(), KONTEXT_DEV: _why_not_hub(machine)}


def _why_not_tiny() -> str | None:
    from kontext_fast.pipeline.folder import TINY_FOLDER, check_folder

    try:
        check_folder(TINY_FOLDER, "tiny")
    except KontextError as error:
        return f"{error} Reinstall kontext-fast, since tiny comes with it."
    return None


def _why_not_random() -> str | None:
    from kontext_fast.pipeline.device import choose_device
    from kontext_fast.pipeline.random_weights import check_room_for_random

    try:
        check_room_for_random(choose_device(None))
    except KontextError as error:
        return str(error)
    return None


def _why_not_hub(machine: Machine) -> str | None:
    from huggingface_hub import get_token

    from kontext_fast.optimizations.presets import memory_refusal, preset_that_fits
    from kontext_fast.pipeline.hub import cached_folder
    from kontext_fast.pipeline.random_weights import RANDOM_NEEDS_GIB

    if machine.device == "cuda":
        if preset_that_fits(machine) is None:
            return memory_refusal(DEFAULT_PRESET, machine)
    elif machine.memory_bytes < RANDOM_NEEDS_GIB * _GIB:
        memory_gib = machine.memory_bytes / _GIB
        return f"It needs about {RANDOM_NEEDS_GIB} GiB of memory and this device has {memory_gib:.1f}; use tiny here."
    # The Hub is not queried, so that the command does not hang without a network.
    if cached_folder(KONTEXT_DEV) is not None:
        return None
    if get_token() is None:
        return f"It is gated; accept its licence at https://huggingface.co/{KONTEXT_DEV} and set HF_TOKEN."
    return None


def _presets(machine: Machine) -> dict[str, str | None]:
    """Why each preset is refused here, or None where it is ready for FLUX.1-Kontext-dev."""
    from kontext_fast.optimizations.presets import PRESETS, memory_refusal, resolve

    reasons: dict[str, str | None] = {}
    for name in PRESETS:
        try:
            resolve(name, machine)
            reasons[name] = memory_refusal(name, machine)
        except KontextError as error:
            reasons[name] = str(error)
    return reasons


def _print(findings: dict[str, Any], machine: Machine) -> None:
    """One line of what is there with a tick, one of what is not with a cross and the reason, and what to type."""
    print(f"kontext-fast {__version__}, Python {findings['python']}, {machine.platform}")
    installed = findings["packages"]
    missing = [name for name, version in installed.items() if version is None]
    tick(not missing, ", ".join(f"{name} {version or 'is not installed'}" for name, version in installed.items()))
    memory = f"{machine.memory_bytes / _GIB:.1f} GiB of memory"
    tick(machine.gpu is not None, f"{machine.gpu or 'no GPU found'}, {memory}")
    tick(machine.cxx is not None, f"C++ compiler {machine.cxx or 'not found; the preset compile needs one'}")
    for name, reason in findings["checkpoints"].items():
        tick(reason is None, f"checkpoint {name}{'' if reason is None else f': {reason}'}")
    ready = [name for name, reason in findings["presets"].items() if reason is None]
    tick(bool(ready), f"{len(ready)} of {len(findings['presets'])} presets run here; see kontext presets")
    for name, reason in findings["presets"].items():
        if reason is not None:
            tick(False, f"preset {name}: {reason}")
    why, command = _next(findings, machine)
    print(f"\n{why}:\n  {command}")


def _next(findings: dict[str, Any], machine: Machine) -> tuple[str, str]:
    """What to do now, and the command that does it."""
    from kontext_fast.optimizations.presets import preset_that_fits

    if machine.device != "cuda":
        return "Without an NVIDIA GPU, try it on the bundled model", "kontext demo"
    if (preset := preset_that_fits(machine)) is None:
        return "This card is too small for FLUX.1-Kontext-dev; try it on the bundled model", "kontext demo"
    if findings["checkpoints"][KONTEXT_DEV] is not None:
        return f"Accept the licence at https://huggingface.co/{KONTEXT_DEV}, then log in", "hf auth login"
    named = "" if preset == DEFAULT_PRESET else f" --preset {shlex.quote(preset)}"
    return "Edit a picture of yours", f'kontext edit photo.jpg "make the car red"{named}'
