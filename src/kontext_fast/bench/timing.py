"""Where the time of one edit goes: text encoding, VAE encoding, every step, VAE decoding.

A `StageClock` wraps methods of the objects of one pipeline, never of their classes, and removes the wrappers
afterwards. On a GPU it records CUDA events, which do not make the edit wait; elsewhere it reads `perf_counter`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import Any, Literal, Self

from kontext_fast.optimizations.patching import set_attribute
from kontext_fast.pipeline.previews import AROUND

Stage = Literal["text_encode", "vae_encode", "vae_decode"]

_T5 = "_get_t5_prompt_embeds"


@dataclass(frozen=True)
class StageTimes:
    """Seconds. `stages_s` has text_encode, vae_encode, denoise and vae_decode, if the call had that stage."""

    stages_s: dict[str, float]
    steps_s: tuple[float, ...]


class StageClock:
    """Times one call of `pipe` made inside the `with` block; read it with `times()` after the device is synchronized.

    Denoising starts when the pipeline sets the scheduler's begin index, right before its loop; a step ends when the
    scheduler's step ends. So the steps add up to `denoise`, and the time that a step spends outside the transformer
    counts.
    """

    def __init__(self, pipe: Any, device: Any = None) -> None:
        """`device` is the device of the pipeline; None asks the pipeline, which takes milliseconds."""
        self._pipe = pipe
        self._mark: Callable[[], Any] = _marker(pipe._execution_device if device is None else device)
        self._undo = ExitStack()
        self._open: list[tuple[Stage, Any]] = []
        self._spans: list[tuple[Stage, Any, Any]] = []
        self._denoise_start: Any = None
        self._step_ends: list[Any] = []

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._time_stage(undo, self._pipe, "encode_prompt", "text_encode")
            if hasattr(self._pipe, _T5):
                # It may begin before the rest of the stage.
                self._time_stage(undo, self._pipe, _T5, "text_encode")
            self._time_stage(undo, self._pipe.vae, "encode", "vae_encode")
            self._time_stage(undo, self._pipe.vae, "decode", "vae_decode")
            _wrap(undo, self._pipe.scheduler, "set_begin_index", after=self._start_denoising)
            _wrap(undo, self._pipe.scheduler, "step", after=self._end_step)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def times(self) -> StageTimes:
        """The times of the call. Waits until the device has finished."""
        stages: dict[str, float] = {}
        for stage, start, end in self._spans:
            stages[stage] = stages.get(stage, 0.0) + _seconds(start, end)
        marks = [self._denoise_start, *self._step_ends]
        steps = tuple(_seconds(start, end) for start, end in pairwise(marks))
        if steps:
            stages["denoise"] = sum(steps)
        return StageTimes(stages, steps)

    def _time_stage(self, undo: ExitStack, owner: Any, method: str, stage: Stage) -> None:
        """Time calls of `method` but those within a call of the same stage."""

        def before() -> None:
            self._open.append((stage, None if self._is_open(stage) else self._mark()))

        def after() -> None:
            _, start = self._open.pop()
            if start is not None:
                self._spans.append((stage, start, self._mark()))

        _wrap(undo, owner, method, before=before, after=after)

    def _is_open(self, stage: Stage) -> bool:
        return any(other == stage for other, _ in self._open)

    def _start_denoising(self) -> None:
        self._denoise_start = self._mark()

    def _end_step(self) -> None:
        self._step_ends.append(self._mark())


def _wrap(
    undo: ExitStack, owner: Any, name: str, *, before: Callable[[], None] | None = None, after: Callable[[], None]
) -> None:
    """Call `before` and `after` around each call of `owner.name` until `undo` is closed."""

    def around(method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if before:
                before()
            result = method(*args, **kwargs)
            after()
            return result

        # A solver's scheduler takes over from the pipeline's own and is timed in its place.
        setattr(timed, AROUND, around)
        return timed

    set_attribute(owner, name, around(getattr(owner, name)), undo)


def _marker(device: Any) -> Callable[[], Any]:
    """A function that marks the current time: an event in the device's stream, or seconds on the host."""
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
