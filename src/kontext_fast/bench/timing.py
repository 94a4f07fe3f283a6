"""Where the time of one edit goes: text encoding, VAE encoding, every step, VAE decoding.

A `StageClock` wraps methods on the objects of one pipeline, never on their classes, and takes the wrappers off again.
On a GPU it records CUDA events and waits for nothing while the edit runs; elsewhere it reads `perf_counter`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import Any, Literal, Self

Stage = Literal["text_encode", "vae_encode", "vae_decode"]


@dataclass(frozen=True)
class StageTimes:
    """Seconds. `stages_s` has text_encode, vae_encode, denoise and vae_decode, as far as the call had them."""

    stages_s: dict[str, float]
    steps_s: tuple[float, ...]


class StageClock:
    """Times one call of `pipe` made inside the `with` block; read it with `times()` after the device is synchronized.

    Denoising starts where the pipeline sets the scheduler's begin index, right before its loop; a step ends where the
    scheduler's step ends. So the steps add up to `denoise`, and what a step spends outside the transformer counts.
    """

    def __init__(self, pipe: Any, device: Any = None) -> None:
        """`device` is the one that runs; None asks the pipeline, which takes milliseconds to say."""
        self._pipe = pipe
        self._mark: Callable[[], Any] = _marker(pipe._execution_device if device is None else device)
        self._undo = ExitStack()
        self._spans: list[tuple[Stage, Any, Any]] = []
        self._denoise_start: Any = None
        self._step_ends: list[Any] = []

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._time_stage(undo, self._pipe, "encode_prompt", "text_encode")
            self._time_stage(undo, self._pipe.vae, "encode", "vae_encode")
            self._time_stage(undo, self._pipe.vae, "decode", "vae_decode")
            _wrap(undo, self._pipe.scheduler, "set_begin_index", after=self._start_denoising)
            _wrap(undo, self._pipe.scheduler, "step", after=self._end_step)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def times(self) -> StageTimes:
        """What the call took. Waits for the device where it has not finished."""
        stages: dict[str, float] = {}
        for stage, start, end in self._spans:
            stages[stage] = stages.get(stage, 0.0) + _seconds(start, end)
        marks = [self._denoise_start, *self._step_ends]
        steps = tuple(_seconds(start, end) for start, end in pairwise(marks))
        if steps:
            stages["denoise"] = sum(steps)
        return StageTimes(stages, steps)

    def _time_stage(self, undo: ExitStack, owner: Any, method: str, stage: Stage) -> None:
        starts: list[Any] = []
        _wrap(
            undo,
            owner,
            method,
            before=lambda: starts.append(self._mark()),
            after=lambda: self._spans.append((stage, starts.pop(), self._mark())),
        )

    def _start_denoising(self) -> None:
        self._denoise_start = self._mark()

    def _end_step(self) -> None:
        self._step_ends.append(self._mark())


def _wrap(
    undo: ExitStack, owner: Any, name: str, *, before: Callable[[], None] | None = None, after: Callable[[], None]
) -> None:
    """Shadow a method on one instance and register on `undo` what was there, which may itself be a shadow."""
    method = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        if before:
            before()
        result = method(*args, **kwargs)
        after()
        return result

    if name in vars(owner):
        undo.callback(vars(owner).__setitem__, name, vars(owner)[name])
    else:
        undo.callback(vars(owner).pop, name)
    vars(owner)[name] = timed


def _marker(device: Any) -> Callable[[], Any]:
    """Returns a function that marks this moment: an event in the device's stream, or seconds on the host."""
    import torch

    if device.type != "cuda":
        return perf_counter

    def mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        return event

    return mark


def _seconds(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000
