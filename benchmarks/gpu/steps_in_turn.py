"""The engine's step on the inputs of an edit, and arms of a comparison that take turns: heat is the same for all."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.latents import latents_of
from kontext_fast.bench.nvml import NvmlDevice
from kontext_fast.datasets.shapes import held_out

_TURN_S = 1.0


def first_step(pipe: Any, engine: Any, size: int, batch: int) -> tuple[Any, ...]:
    """The arguments of the engine's first step of an edit."""
    kept: list[tuple[Any, ...]] = []
    step = type(engine).step

    def keeping(self: Any, *arguments: Any, **named: Any) -> Tensor:
        kept.append(arguments)
        result: Tensor = step(self, *arguments, **named)
        return result

    type(engine).step = keeping
    try:
        items = held_out(batch)
        latents_of(pipe, [item.render(size) for item in items], [item.instruction for item in items], steps=2)
    finally:
        type(engine).step = step
    return kept[0]


def in_turns(steps: Mapping[str, Callable[[], Tensor]], rounds: int, card: NvmlDevice | None) -> dict[str, Any]:
    """By arm, the median `ms` of a step over `rounds`, in an order that is reversed each time, and all `turns`."""
    turns: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number in range(rounds):
        for arm in steps if number % 2 else reversed(steps):
            turns[arm].append(_turn(steps[arm], card))
    ms = {arm: statistics.median(turn["ms"] for turn in of_arm) for arm, of_arm in turns.items()}
    return {"ms": ms, "turns": turns}


def _turn(step: Callable[[], Tensor], card: NvmlDevice | None) -> dict[str, Any]:
    """Milliseconds of a step, repeated for `_TURN_S`, and what the card reports near the end."""
    begin, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
    begin.record()
    step()
    middle.record()
    middle.synchronize()
    count = max(3, round(1e3 * _TURN_S / begin.elapsed_time(middle)))
    middle.record()
    for _ in range(count):
        step()
    end.record()
    readings = {} if card is None else {"power_w": card.power_w(), "clock_mhz": card.clock_sm_mhz()}
    end.synchronize()
    return {"ms": middle.elapsed_time(end) / count, **readings}
