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
from torch import nn

if TYPE_CHECKING:
    from stages import Run

SAVE_EVERY_S = 60.0
LOG_EVERY = 100
PROBE = (150, 300)
"""Steps between which the pace is measured that `within_s` is turned into a number of steps by."""


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
    """Exponential moving average of parameters; short at first, so that an early look is not a stale one."""

    def __init__(self, parameters: list[torch.Tensor], decay: float) -> None:
        self.parameters, self.decay, self.updates = parameters, decay, 0
        self.values = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.values, [parameter.detach() for parameter in self.parameters], 1 - decay)

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        torch._foreach_copy_([parameter.data for parameter in self.parameters], self.values)


def train(
    name: str,
    modules: dict[str, nn.Module],
    loss_of: Callable[[int, float], tuple[torch.Tensor, dict[str, torch.Tensor]]],
    run: Run,
    *,
    average_decay: float = 0.999,
) -> bool:
    """Trains to the end of the schedule and leaves averaged weights in `modules`; True when that point was reached.

    Resumes from `run.folder`/<name>.state.pt, written every minute and at the end. `loss_of(step, progress)`, the
    latter from 0 to 1, returns the loss and figures to log. A loss that is not finite raises FloatingPointError.
    """
    schedule, folder = run.schedule, run.folder
    parameters = [
        parameter for module in modules.values() for parameter in module.parameters() if parameter.requires_grad
    ]
    device = parameters[0].device
    optimizer = torch.optim.AdamW(
        parameters, lr=schedule.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=device.type == "cuda"
    )
    average = Average(parameters, average_decay)
    folder.mkdir(parents=True, exist_ok=True)
    state_path, log_path = folder / f"{name}.state.pt", folder / f"{name}.log.jsonl"
    step, planned = _resume(state_path, modules, optimizer, average)
    schedule = replace(schedule, steps=planned or schedule.steps)
    started = saved = probed = time.monotonic()
    while step < schedule.steps and time.monotonic() - started < run.stop_after_s:
        if run.within_s is not None and step in PROBE and planned is None:
            now = _now(device)
            if step == PROBE[1]:
                schedule = _fitted(schedule, (now - probed) / (PROBE[1] - PROBE[0]), run.within_s - (now - run.started))
            probed = now
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        loss, figures = loss_of(step, step / schedule.steps)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        step += 1
        if step % LOG_EVERY == 0 or step == schedule.steps:
            _log(log_path, step, time.monotonic() - started, loss, {"gradient_norm": norm, **figures})
        if time.monotonic() - saved > SAVE_EVERY_S:
            _save(state_path, modules, optimizer, average, step, schedule.steps)
            saved = time.monotonic()
    _save(state_path, modules, optimizer, average, step, schedule.steps)
    average.copy_to_parameters()
    return step >= schedule.steps


def _log(path: Path, step: int, seconds: float, loss: torch.Tensor, figures: dict[str, torch.Tensor]) -> None:
    row: dict[str, Any] = {"step": step, "seconds": round(seconds, 1), "loss": loss.item()}
    row |= {key: float(value) for key, value in figures.items()}
    if not math.isfinite(row["loss"]):
        raise FloatingPointError(f"the loss is {row['loss']} at step {step}; resume with a lower learning rate")
    with path.open("a") as log:
        log.write(json.dumps(row) + "\n")
    if step % (10 * LOG_EVERY) == 0:
        print(json.dumps(row), flush=True)


def _now(device: torch.device) -> float:
    """Once everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def _fitted(schedule: Schedule, seconds_per_step: float, seconds_left: float) -> Schedule:
    """`schedule` with as many steps as fit; those of a pace of this device, so their number is printed to be kept."""
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
