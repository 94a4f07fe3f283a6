"""A plan: a preset resolved for one machine and one checkpoint, checked whole before anything changes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kontext_fast.errors import InvalidInput, Refused
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.presets import FALLBACKS, PEAK_GIB, Preset, find_preset
from kontext_fast.pipeline.device import Machine
from kontext_fast.pipeline.load import is_full_size, kind_of
from kontext_fast.records.schema import AppliedOptimization


@dataclass(frozen=True)
class Plan:
    """What will be applied, in order."""

    preset: str
    optimizations: tuple[Optimization, ...]
    labels: tuple[str, ...] = ()
    """Labels that must be shown with every number of a run of this plan."""

    @property
    def applied(self) -> tuple[AppliedOptimization, ...]:
        """The plan as a record stores it."""
        return tuple(
            AppliedOptimization(
                name=optimization.name, effect=optimization.effect.value, parameters=optimization.parameters()
            )
            for optimization in self.optimizations
        )

    @property
    def content_hash(self) -> str:
        """Sha256 of what is applied, in order, with all parameters; the preset's name does not count."""
        content = [applied.model_dump(mode="json") for applied in self.applied]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def in_host_memory(self) -> bool:
        """Whether to load the pipeline into host memory, since the plan moves what runs to the device."""
        return any(optimization.in_host_memory for optimization in self.optimizations)


def resolve(
    preset: str | Preset | Sequence[Optimization], machine: Machine, *, architecture_only: bool = False
) -> Plan:
    """The plan of `preset` (a name, a Preset or a list of optimizations) for `machine`.

    `architecture_only`: the weights are random, so a preset's variant for random weights is used and labelled.
    What a preset has as optional and this hardware cannot run is left out, and a label says so.
    Raises InvalidInput for an unknown name, for conflicts and for what is missing, Refused if only the machine is in
    the way; the message holds every reason at once.
    """
    whole = _preset(preset)
    on_random = whole.on_random if architecture_only else None
    left_out = {
        optimization.name: reason
        for optimization in whole.optional
        if (reason := optimization.hardware_refusal(machine)) is not None
    }
    chosen = (
        *(whole.optimizations if on_random is None else on_random),
        *(optimization for optimization in whole.optional if optimization.name not in left_out),
    )
    chosen = tuple(optimization.on_machine(machine) for optimization in chosen)
    impossible = [*_repetitions(chosen), *_missing(chosen), *_conflicts(chosen)]
    # Two optimizations may have the same reason.
    refused = list(
        dict.fromkeys(reason for optimization in chosen if (reason := optimization.refusal(machine)) is not None)
    )
    if impossible:
        raise InvalidInput(f"The preset {whole.name} cannot be applied: {'; '.join([*impossible, *refused])}.")
    if refused:
        raise Refused(f"The preset {whole.name} is refused on this machine: {'; '.join(refused)}.")
    labels = [optimization.label(architecture_only=architecture_only) for optimization in chosen]
    labels += [optimization.label_on(machine) for optimization in chosen]
    labels += [f"without {name} of its recipe: {reason}" for name, reason in left_out.items()]
    return Plan(
        preset=whole.name,
        optimizations=tuple(sorted(chosen, key=lambda optimization: optimization.phase)),
        labels=tuple(label for label in labels if label is not None),
    )


def resolve_for(checkpoint: str, preset: str | Preset, machine: Machine) -> Plan:
    """As `resolve`, for a checkpoint that is not loaded yet, as a user names it.

    Raises what `resolve` raises, Refused too if the GPU has too little memory, and CheckpointUnavailable.
    """
    plan = resolve(preset, machine, architecture_only=kind_of(checkpoint).random_weights)
    if is_full_size(checkpoint):
        require_memory(plan.preset, machine)
    return plan


def require_memory(preset: str, machine: Machine) -> None:
    """Raise Refused where `memory_refusal` has a reason."""
    if (reason := memory_refusal(preset, machine)) is not None:
        raise Refused(reason)


def memory_refusal(preset: str, machine: Machine) -> str | None:
    """Why this machine's GPU is too small for `preset` on FLUX.1-Kontext-dev, as a sentence, or None."""
    needed_gib, memory_gib = PEAK_GIB.get(preset), machine.memory_bytes / 2**30
    if machine.device != "cuda" or needed_gib is None or memory_gib >= needed_gib:
        return None
    smaller = preset_that_fits(machine)
    remedy = f"use --preset {smaller}" if smaller else "no preset fits, so use a larger card or the checkpoint tiny"
    return (
        f"The preset {preset} needs {needed_gib} GiB of GPU memory for FLUX.1-Kontext-dev and this card has "
        f"{memory_gib:.0f}: {remedy}."
    )


def preset_that_fits(machine: Machine) -> str | None:
    """The first preset of FALLBACKS that this GPU can run on FLUX.1-Kontext-dev, or None."""
    for name in FALLBACKS:
        can_run = all(optimization.refusal(machine) is None for optimization in find_preset(name).optimizations)
        if can_run and machine.memory_bytes >= PEAK_GIB[name] * 2**30:
            return name
    return None


def _preset(preset: str | Preset | Sequence[Optimization]) -> Preset:
    if isinstance(preset, str):
        return find_preset(preset)
    if isinstance(preset, Preset):
        return preset
    optimizations = tuple(preset)
    if not all(isinstance(optimization, Optimization) for optimization in optimizations):
        raise InvalidInput("Pass the name of a preset, a Preset or a list of optimizations.")
    return Preset("+".join(optimization.name for optimization in optimizations) or "baseline", "", optimizations)


def _repetitions(chosen: Sequence[Optimization]) -> Iterator[str]:
    for name, count in Counter(optimization.name for optimization in chosen).items():
        if count > 1:
            yield f"{name} is in the list {count} times, keep one"


def _missing(chosen: Sequence[Optimization]) -> Iterator[str]:
    names = {optimization.name for optimization in chosen}
    for optimization in chosen:
        if missing := sorted(optimization.requires - names):
            name = optimization.name
            yield f"{name} needs {' and '.join(missing)}, add it to the list or use the preset {name}"


def _conflicts(chosen: Sequence[Optimization]) -> Iterator[str]:
    names = {optimization.name for optimization in chosen}
    for optimization in chosen:
        for conflict in optimization.conflicts:
            if conflict.other in names and all(
                getattr(optimization, key) == value for key, value in conflict.when.items()
            ):
                yield f"{conflict.between(optimization.name)} exclude each other, {conflict.because}"
