"""What every training stage shares: schedule, averaging, checkpoints to resume from, and the log."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from graphs import LossOf, Steps, Tensors
from torch import nn

if TYPE_CHECKING:
    from stages import Run

SAVE_EVERY_S = 60.0
LOG_EVERY = 100
PROBE = (150, 300)
"""The speed between these steps turns `within_s` into a number of steps."""


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a cosine down to zero at `steps`."""

    steps: int
    learning_rate: float
    warmup: int = 300

    def rate(self, step: int) -> float:
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Average:
    """Exponential moving average of parameters, over a short window at first, so that early averages are not stale."""

    def __init__(self, parameters: list[torch.Tensor], decay: float) -> None:
        self.parameters, self.decay, self.updates = parameters, decay, 0
        self.values = [parameter.detach().clone() for parameter in parameters]
        self._share = torch.zeros((), device=parameters[0].device)

    def advance(self) -> None:
        """Set how much the next update takes of the parameters, outside of what a graph repeats."""
        self.updates += 1
        self._share.fill_(1 - min(self.decay, (1 + self.updates) / (10 + self.updates)))

    @torch.no_grad()
    def update(self) -> None:
        difference = torch._foreach_sub(self.parameters, self.values)
        torch._foreach_mul_(difference, self._share)
        torch._foreach_add_(self.values, difference)

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        torch._foreach_copy_([parameter.data for parameter in self.parameters], self.values)


def train(
    name: str,
    modules: dict[str, nn.Module],
    draw: Callable[[int], tuple[str, Tensors]],
    loss_of: LossOf,
    run: Run,
    *,
    average_decay: float = 0.999,
) -> bool:
    """Trains to the end of the schedule and leaves averaged weights in `modules`; True when that point was reached.

    Resumes from `run.folder`/<name>.state.pt, written every minute and at the end. `draw(step)` returns a batch and
    its kind, `loss_of(kind, batch)` the loss and figures to log. Raises FloatingPointError if the loss is not finite.
    """
    schedule, folder = run.schedule, run.folder
    folder.mkdir(parents=True, exist_ok=True)
    parameters = [
        parameter for module in modules.values() for parameter in module.parameters() if parameter.requires_grad
    ]
    device = parameters[0].device
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(
        parameters,
        lr=torch.zeros((), device=device) if on_gpu else 0.0,
        betas=(0.9, 0.99),
        weight_decay=0.01,
        fused=on_gpu,
        capturable=on_gpu,
    )
    average = Average(parameters, average_decay)
    state_path, log_path = folder / f"{name}.state.pt", folder / f"{name}.log.jsonl"
    step, planned = _resume(state_path, modules, optimizer, average)
    schedule = replace(schedule, steps=planned or schedule.steps)
    take_step = Steps(parameters, optimizer, average, loss_of, graphs=on_gpu)
    started = saved = probed = time.monotonic()
    while step < schedule.steps and time.monotonic() - started < run.stop_after_s:
        if run.within_s is not None and step in PROBE and planned is None:
            now = _now(device)
            if step == PROBE[1]:
                schedule = _fitted(schedule, (now - probed) / (PROBE[1] - PROBE[0]), run.within_s - (now - run.started))
            probed = now
        figures = take_step(*draw(step), rate=schedule.rate(step))
        step += 1
        if step % LOG_EVERY == 0 or step == schedule.steps:
            _log(log_path, step, time.monotonic() - started, figures)
        if time.monotonic() - saved > SAVE_EVERY_S:
            _save(state_path, modules, optimizer, average, step, schedule.steps)
            saved = time.monotonic()
    _save(state_path, modules, optimizer, average, step, schedule.steps)
    average.copy_to_parameters()
    return step >= schedule.steps


def _log(path: Path, step: int, seconds: float, figures: Tensors) -> None:
    row: dict[str, Any] = {"step": step, "seconds": round(seconds, 1)}
    row |= {key: float(value) for key, value in figures.items()}
    if not math.isfinite(row["loss"]):
        raise FloatingPointError(f"the loss is {row['loss']} at step {step}; resume with a lower learning rate")
    with path.open("a") as log:
        log.write(json.dumps(row) + "\n")
    if step % (10 * LOG_EVERY) == 0:
        print(json.dumps(row), flush=True)


def _now(device: torch.device) -> float:
    """The time, after waiting for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def _fitted(schedule: Schedule, seconds_per_step: float, seconds_left: float) -> Schedule:
    """`schedule` with as many steps as this device can do in time; their number is printed, to repeat the training."""
    steps = PROBE[1] + max(0, int(seconds_left / seconds_per_step))
    print(f"{1000 * seconds_per_step:.1f} ms a step: repeat this training with --steps {steps}", flush=True)
    return replace(schedule, steps=steps)


def _save(path: Path, modules: dict[str, nn.Module], optimizer: Any, average: Average, step: int, planned: int) -> None:
    state = {
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "optimizer": optimizer.state_dict(),
        "average": average.values,
        "updates": average.updates,
        "step": step,
        "planned": planned,
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def _resume(path: Path, modules: dict[str, nn.Module], optimizer: Any, average: Average) -> tuple[int, int | None]:
    """The steps that were done and, once there is a state, how many there are to be."""
    if not path.exists():
        return 0, None
    device = average.values[0].device
    state = torch.load(path, map_location=device, weights_only=True)
    for name, module in modules.items():
        module.load_state_dict(state["modules"][name])
    optimizer.load_state_dict(state["optimizer"])
    average.values, average.updates = state["average"], state["updates"]
    return int(state["step"]), int(state["planned"])
