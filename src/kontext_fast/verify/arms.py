"""The arms of a verification: baseline, presets, the floor of rounding, and the controls, in the order they run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kontext_fast.datasets.base import Item
from kontext_fast.metrics.base import Control
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.presets import Preset
from kontext_fast.optimizations.techniques.first_block_cache import FirstBlockCache
from kontext_fast.records.schema import BASELINE, Arm, ArmRole
from kontext_fast.verify.controls import CACHE_FACTOR, OTHER_ATTENTION, OTHER_POSITION, OTHER_PRECISION, RERUN

CONTROL_CALLS = 2
"""The control items are made in so many calls at least: what a call leaves behind shows in the next one only."""
FEWER_STEPS = (0.75, 0.5, 0.36, 0.25, 0.15)
"""Of the steps: baseline with nothing but fewer of them, which a preset has to beat."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One arm: what is applied, to which items, and what is different from baseline."""

    arm: Arm
    items: tuple[Item, ...]
    apart: int
    """So many first items, those of the controls, are made in calls of their own, the same ones in every arm."""
    preset: str | Preset | tuple[Optimization, ...] = BASELINE
    instructions: tuple[str, ...] | None = None
    """In place of the items' own."""
    steps: int
    batch: int
    """Images per call at most."""
    backwards: bool = False
    """The last call first, each as it was."""
    other_attention: bool = False
    other_precision: bool = False
    timed: bool = False
    """Where the frontier is wanted: whether single edits are timed, too."""

    @property
    def preset_name(self) -> str:
        """What a record calls it: the preset's name for its own arms, else the arm's."""
        return self.arm.preset or self.arm.name


def arms(
    presets: Sequence[str | Preset],
    items: Sequence[Item],
    control_items: Sequence[Item],
    *,
    steps: int,
    seeds: int,
    batch: int,
    frontier: bool = False,
) -> Iterator[Plan]:
    """All arms that run the pipeline, with `batch` images per call. Other precision comes last, since it spoils the
    pipeline; `frontier` adds baseline with fewer steps.
    """
    every, few = tuple(items), tuple(control_items)

    def plan(
        name: str, role: ArmRole, of: tuple[Item, ...] = few, *, of_preset: str | None = None, **more: Any
    ) -> Plan:
        arm = Arm(name=name, role=role, preset=of_preset)
        return Plan(**{"arm": arm, "items": of, "apart": len(few), "steps": steps, "batch": batch, **more})

    yield plan(BASELINE, "baseline", every, timed=True)
    for preset in presets:
        name = preset if isinstance(preset, str) else preset.name
        yield plan(name, "preset", every, preset=preset, timed=True)
        yield plan(f"{name}, other order", "order", preset=preset, of_preset=name, backwards=True)
    for count in fewer_steps(steps) if frontier else ():
        yield plan(f"{count} steps" if count > 1 else "1 step", "steps", every, steps=count, timed=True)
    yield plan(RERUN, "floor", timed=True)
    yield plan(OTHER_ATTENTION, "floor", other_attention=True)
    half = max(1, min(batch, seeds * math.ceil(len(few) / CONTROL_CALLS)) // 2)
    yield plan(OTHER_POSITION, "floor", few[::-1], batch=half)
    yield plan(Control.HALF_STEPS.value, "control", steps=max(1, round(steps / 2)))
    loose = FirstBlockCache(threshold=CACHE_FACTOR * FirstBlockCache().threshold)
    yield plan(Control.CACHE_X4.value, "control", preset=(loose,))
    yield plan(Control.SWAPPED.value, "control", instructions=_swapped(few))
    yield plan(OTHER_PRECISION, "floor", other_precision=True)


def fewer_steps(steps: int) -> tuple[int, ...]:
    """The numbers of steps, fewer than `steps`, that the frontier holds presets against; most first."""
    counts = {max(1, round(share * steps)) for share in FEWER_STEPS}
    return tuple(sorted((count for count in counts if count < steps), reverse=True))


def _swapped(items: Sequence[Item]) -> tuple[str, ...]:
    """For each item the next other instruction; its own only where all are the same."""
    found = []
    for index, item in enumerate(items):
        later = [other.instruction for other in (*items[index + 1 :], *items[:index])]
        found.append(next((text for text in later if text != item.instruction), item.instruction))
    return tuple(found)
