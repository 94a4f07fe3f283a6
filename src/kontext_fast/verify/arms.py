"""The arms of a verification: baseline, presets, the floor of rounding, and the controls, in the order they run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kontext_fast.items.base import Item
from kontext_fast.metrics.base import Control
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.first_block_cache import FirstBlockCache
from kontext_fast.optimizations.presets import Preset
from kontext_fast.records.schema import BASELINE, Arm
from kontext_fast.verify.controls import CACHE_FACTOR, OTHER_ATTENTION, OTHER_POSITION, OTHER_PRECISION, RERUN


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One arm: what is applied, to which items, and what is different from baseline."""

    arm: Arm
    items: tuple[Item, ...]
    preset: str | Preset | tuple[Optimization, ...] = BASELINE
    instructions: tuple[str, ...] | None = None
    """In place of the items' own."""
    steps_factor: float = 1.0
    other_attention: bool = False
    alone: bool = False
    """The last seed by itself, which in baseline is the last of a batch."""
    other_precision: bool = False

    @property
    def preset_name(self) -> str:
        """What a record calls it: the preset's name for its own arms, else the arm's."""
        return self.arm.preset or self.arm.name


def arms(presets: Sequence[str | Preset], items: Sequence[Item], control_items: Sequence[Item]) -> Iterator[Plan]:
    """All arms that run the pipeline. Other precision comes last, since it spoils the pipeline."""
    every, few = tuple(items), tuple(control_items)
    yield Plan(arm=Arm(name=BASELINE, role="baseline"), items=every)
    for preset in presets:
        name = preset if isinstance(preset, str) else preset.name
        yield Plan(arm=Arm(name=name, role="preset"), items=every, preset=preset)
        reordered = Arm(name=f"{name}, other order", role="order", preset=name)
        yield Plan(arm=reordered, items=few[::-1], preset=preset)
    yield Plan(arm=Arm(name=RERUN, role="floor"), items=few)
    yield Plan(arm=Arm(name=OTHER_ATTENTION, role="floor"), items=few, other_attention=True)
    yield Plan(arm=Arm(name=OTHER_POSITION, role="floor"), items=few, alone=True)
    yield Plan(arm=_control(Control.HALF_STEPS), items=few, steps_factor=0.5)
    loose = FirstBlockCache(threshold=CACHE_FACTOR * FirstBlockCache().threshold)
    yield Plan(arm=_control(Control.CACHE_X4), items=few, preset=(loose,))
    yield Plan(arm=_control(Control.SWAPPED), items=few, instructions=_swapped(few))
    yield Plan(arm=Arm(name=OTHER_PRECISION, role="floor"), items=few, other_precision=True)


def _control(control: Control) -> Arm:
    return Arm(name=control.value, role="control")


def _swapped(items: Sequence[Item]) -> tuple[str, ...]:
    """For each item the next other instruction; its own only where all are the same."""
    found = []
    for index, item in enumerate(items):
        later = [other.instruction for other in (*items[index + 1 :], *items[:index])]
        found.append(next((text for text in later if text != item.instruction), item.instruction))
    return tuple(found)
