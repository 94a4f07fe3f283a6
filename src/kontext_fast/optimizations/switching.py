"""Several presets on one pipeline: what they have in common is applied once, and the rest exchanged between calls.

A preset that differs from another in its schedule of steps alone shares that one's weights and kernels, so that a
server can run either for each request at no cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.acceleration import apply_plan
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.call_tracking import tracker_of
from kontext_fast.optimizations.presets import Plan, Preset


def sharing_groups(presets: Sequence[Preset], *, architecture_only: bool) -> list[tuple[Preset, ...]]:
    """`presets` in groups that one pipeline can run, in the order in which they first appear.

    `architecture_only`: the weights are random, so variants for random weights run.
    """
    groups: dict[str, list[Preset]] = {}
    for preset in presets:
        chosen = preset.on_random if architecture_only and preset.on_random is not None else preset.optimizations
        groups.setdefault(
            _fixed(Plan(preset.name, (*chosen, *preset.optional, *preset.on_cuda))).content_hash, []
        ).append(preset)
    return [tuple(group) for group in groups.values()]


class SwitchablePlans:
    """Plans of one sharing group, applied to a pipeline; `select` says which of them the next call runs."""

    def __init__(self, plans: Sequence[Plan], pipe: Any, device: Any = None) -> None:
        """Apply what `plans` have in common.

        Raises what `apply_plan` raises, and ValueError for plans of two groups.
        """
        if len({_fixed(plan).content_hash for plan in plans}) != 1:
            raise ValueError("these plans do not share weights")
        self._pipe = pipe
        self._exchanged: Mapping[str, tuple[Optimization, ...]] = {
            plan.preset: tuple(one for one in plan.optimizations if one.exchangeable) for plan in plans
        }
        self._undo_exchanged = ExitStack()
        self._acceleration = apply_plan(_fixed(plans[0]), pipe, device)
        self._selected: str | None = None

    def select(self, preset: str) -> None:
        """Have the next calls run `preset`, one of the plans. Raises InvalidInput while a call runs, in any thread."""
        if preset == self._selected:
            return
        tracker = tracker_of(self._pipe)
        if tracker is not None and tracker.running_calls:
            raise InvalidInput(f"A call of this pipeline still runs; select {preset} when it has ended.")
        self._undo_exchanged.close()
        self._selected = None
        with ExitStack() as undo:
            for optimization in self._exchanged[preset]:
                optimization.apply(self._pipe, undo)
            self._undo_exchanged = undo.pop_all()
        self._selected = preset

    def revert(self) -> None:
        """Bring back the pipeline as it was before, bit for bit."""
        self._undo_exchanged.close()
        self._selected = None
        self._acceleration.revert()


def _fixed(plan: Plan) -> Plan:
    """What is left of `plan` without what can be exchanged between calls."""
    return Plan(plan.preset, tuple(one for one in plan.optimizations if not one.exchangeable))
