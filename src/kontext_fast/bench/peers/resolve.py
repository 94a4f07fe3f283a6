"""From the name of a peer to a plan, through the same checks as any preset."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kontext_fast.bench.peers.registry import find_peer
from kontext_fast.bench.peers.techniques.fewer_steps import FewerSteps
from kontext_fast.optimizations.plan import Plan, resolve
from kontext_fast.optimizations.presets import Preset
from kontext_fast.records.schema import Cell

if TYPE_CHECKING:
    from kontext_fast.optimizations.machine import Machine


def resolve_peer(preset: str, machine: Machine, *, architecture_only: bool = False) -> Plan:
    """The plan of the peer that is asked for as `preset`; its labels say what this hardware leaves out.

    Raises as `resolve` does: InvalidInput for an unknown name, Refused for what cannot be run here.
    """
    peer = find_peer(preset)
    unfit = [(one, reason) for one in peer.where_possible if (reason := one.unfit(machine)) is not None]
    left_out = [one for one, _ in unfit]
    chosen = [*peer.needs, *(one for one in peer.where_possible if one not in left_out)]
    optimizations = tuple(one.on_random_weights() if architecture_only else one for one in chosen)
    plan = resolve(Preset(preset, peer.summary, optimizations), machine, architecture_only=architecture_only)
    labels = tuple(f"without {one.name} of its recipe: {reason}" for one, reason in unfit)
    return replace(plan, labels=(*plan.labels, *labels))


def cell_run_for(plan: Plan, asked: Cell) -> Cell:
    """What is run where a suite asks `plan` for a cell: the cell itself, or one with fewer steps."""
    for one in plan.optimizations:
        if isinstance(one, FewerSteps):
            return asked.model_copy(update={"steps": one.steps(asked.steps)})
    return asked
