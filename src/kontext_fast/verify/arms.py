"""The arms of a verification in the order they run: baseline, presets, the floor of rounding, and the controls."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kontext_fast.datasets.base import Item
from kontext_fast.metrics.base import Control
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.presets import Preset
from kontext_fast.optimizations.techniques.first_block_cache import FirstBlockCache
from kontext_fast.records.schema import BASELINE, Arm, ArmRole, Condition
from kontext_fast.verify.conditions import CONDITION_ITEMS, CONDITIONS, condition_arm, condition_count
from kontext_fast.verify.controls import (
    CACHE_FACTOR,
    CONTROL_BATCHES,
    OTHER_ATTENTION,
    OTHER_POSITION,
    OTHER_PRECISION,
    RERUN,
)

FEWER_STEPS = (0.75, 0.5, 0.36, 0.25, 0.15)
"""Fractions of the steps at which the frontier runs baseline, to compare presets with."""

Batch = tuple[int, ...]
"""Positions of the items of one call of the pipeline."""


@dataclass(frozen=True, kw_only=True)
class ArmSpec:
    """What an arm applies, to which items, and how it differs from baseline."""

    arm: Arm
    items: tuple[Item, ...]
    separate: int
    """The first so many items, those of the controls, get batches of their own, the same ones in every arm."""
    preset: str | Preset | tuple[Optimization, ...] = BASELINE
    instructions: tuple[str, ...] | None = None
    """In place of the items' own."""
    negatives: tuple[str, ...] | None = None
    """Negative prompts, with true CFG."""
    steps: int
    images_per_call: int
    """At most."""
    reverse_order: bool = False
    """Whether the last batch runs first; each batch stays as it is."""
    other_attention: bool = False
    other_precision: bool = False
    timed: bool = False
    """Whether the frontier needs times of single edits."""

    @property
    def preset_name(self) -> str:
        """What a record calls it: the preset's name for its own arms, else the arm's."""
        return self.arm.preset or self.arm.name


def arm_specs(
    presets: Sequence[str | Preset],
    items: Sequence[Item],
    control_items: Sequence[Item],
    *,
    steps: int,
    seeds: int,
    images_per_call: int,
    frontier: bool,
) -> Iterator[ArmSpec]:
    """All arms that run the pipeline; `frontier` adds baseline with fewer steps.

    Other precision comes last, since it leaves the pipeline unusable.
    """
    every, few = tuple(items), tuple(control_items)

    def spec(
        name: str,
        role: ArmRole,
        of: tuple[Item, ...] = few,
        *,
        of_preset: str | None = None,
        condition: Condition | None = None,
        **changes: Any,
    ) -> ArmSpec:
        arm = Arm(name=name, role=role, preset=of_preset, condition=condition)
        common = {"items": of, "separate": len(few), "steps": steps, "images_per_call": images_per_call}
        return ArmSpec(arm=arm, **{**common, **changes})

    def conditions(name: str, preset: str | Preset) -> Iterator[ArmSpec]:
        some = few[: condition_count(len(every), CONDITION_ITEMS)]
        for condition in CONDITIONS:
            yield spec(
                condition_arm(name, condition),
                "condition",
                some,
                of_preset=name,
                condition=condition,
                preset=preset,
                images_per_call=1,
                negatives=_swapped_instructions(some) if condition == "true CFG" else None,
            )

    yield spec(BASELINE, "baseline", every, timed=True)
    yield from conditions(BASELINE, BASELINE)
    for preset in presets:
        name = preset if isinstance(preset, str) else preset.name
        yield spec(name, "preset", every, preset=preset, timed=True)
        yield spec(f"{name}, other order", "order", preset=preset, of_preset=name, reverse_order=True)
        yield from conditions(name, preset)
    for count in fewer_steps(steps) if frontier else ():
        yield spec(f"{count} steps" if count > 1 else "1 step", "steps", every, steps=count, timed=True)
    yield spec(RERUN, "floor", timed=True)
    yield spec(OTHER_ATTENTION, "floor", other_attention=True)
    half = max(1, min(images_per_call, seeds * math.ceil(len(few) / CONTROL_BATCHES)) // 2)
    yield spec(OTHER_POSITION, "floor", few[::-1], images_per_call=half)
    yield spec(Control.HALF_STEPS.value, "control", steps=max(1, round(steps / 2)))
    loose = FirstBlockCache(threshold=CACHE_FACTOR * FirstBlockCache().threshold)
    yield spec(Control.CACHE_X4.value, "control", preset=(loose,))
    yield spec(Control.SWAPPED.value, "control", instructions=_swapped_instructions(few))
    yield spec(OTHER_PRECISION, "floor", other_precision=True)


def fewer_steps(steps: int) -> tuple[int, ...]:
    """The numbers of steps, fewer than `steps`, at which the frontier runs baseline; most first."""
    counts = {max(1, round(fraction * steps)) for fraction in FEWER_STEPS}
    return tuple(sorted((count for count in counts if count < steps), reverse=True))


def _swapped_instructions(items: Sequence[Item]) -> tuple[str, ...]:
    """For each item the next other instruction; its own only where all are the same."""
    instructions = [item.instruction for item in items]
    return tuple(
        next((text for text in (*instructions[index + 1 :], *instructions[:index]) if text != own), own)
        for index, own in enumerate(instructions)
    )


def make_batches(
    items: Sequence[Item],
    items_per_call: int,
    size_of: Callable[[Item], Hashable],
    *,
    separate: int,
) -> list[Batch]:
    """All `items` in batches of one size, at most `items_per_call` in each.

    The first `separate` items share no batch with later ones, and make at least `CONTROL_BATCHES` batches. A batch
    depends on `items` alone and not on what ran before, so that a verification which was interrupted goes on with the
    same batches.
    """
    fewer = min(items_per_call, max(1, math.ceil(separate / CONTROL_BATCHES)))
    batches: list[Batch] = []
    for positions, most in ((range(separate), fewer), (range(separate, len(items)), items_per_call)):
        by_size: dict[Hashable, list[int]] = {}
        for index in positions:
            # Asking for the size may open an image.
            by_size.setdefault(size_of(items[index]) if most > 1 else None, []).append(index)
        for of_size in by_size.values():
            batches += [tuple(of_size[start : start + most]) for start in range(0, len(of_size), most)]
    return batches
