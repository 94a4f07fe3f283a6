"""How an optimization sees the requests of one pipeline: their beginning, their steps and their end.

A request is one call `pipe(...)` made by the user. To bracket it, the pipeline's class is swapped for a subclass of
its own that differs in `__call__` only; no class is patched, so other pipelines notice nothing. The steps are
counted by wrapping `step` of the scheduler the request really uses, which the user may have replaced since.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from kontext_fast.optimizations.patching import set_attribute
from kontext_fast.pipeline.edit import STEP_KINDS, joint_kind
from kontext_fast.records.schema import StepKind

_TRACKER = "_kontext_fast_requests"


class PipelineCall:
    """One call of the pipeline while it runs."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.kinds: list[StepKind] = []
        """Kind of each step that has ended: skipped where every sample skipped it."""
        self.sample_kinds: list[tuple[StepKind, ...]] = []
        """The same per sample of the batch; one entry for all of them where nothing tells them apart."""
        self.memory: dict[object, Any] = {}
        """What optimizations remember between steps; emptied when the request ends, however it ends."""
        self._passes = 0
        self._marks: list[tuple[StepKind, ...]] = []
        self._branches: list[list[tuple[StepKind, ...]]] = []

    @property
    def step(self) -> int:
        """0-based index of the step that is running."""
        return len(self.kinds)

    @property
    def total_steps(self) -> int:
        """Steps this request will run; only known once its first step has begun."""
        return int(self.pipe.num_timesteps)

    def begin_pass(self) -> int:
        """0-based index, within its step, of the transformer call that begins now.

        Under true CFG every step calls the transformer twice: pass 0 is the positive prompt, pass 1 the negative one.
        """
        self._passes += 1
        return self._passes - 1

    def mark(self, *kinds: StepKind) -> None:
        """Say what the running pass was, for all samples of the batch or for each of them.

        A step is skipped where all of its passes are; one that is not marked is full.
        """
        self._marks.append(kinds)

    def computed_counts(self) -> list[list[int]]:
        """Computed steps so far: per marked branch (positive, then negative under true CFG), per sample."""
        return [
            [sum(kind != "skipped" for kind in of_sample) for of_sample in zip(*marks, strict=True)]
            for marks in self._branches
        ]

    def end_step(self) -> None:
        """Close the running step."""
        for branch, marks in enumerate(self._marks):
            if branch == len(self._branches):
                self._branches.append([])
            self._branches[branch].append(marks)
        samples = max(map(len, self._marks), default=1)
        by_pass = [marks if len(marks) == samples else marks * samples for marks in self._marks]
        self.sample_kinds.append(tuple(map(joint_kind, zip(*by_pass, strict=True))) or ("full",))
        self.kinds.append(joint_kind(self.sample_kinds[-1]))
        self._marks.clear()
        self._passes = 0


class CallTracker:
    """The requests of one pipeline. Holds no reference to the pipeline between requests."""

    def __init__(self) -> None:
        self.current: PipelineCall | None = None
        """The innermost request that is running; None between requests."""
        self.last_kinds: tuple[StepKind, ...] = ()
        """Kinds of the steps of the most recent request, as far as it got."""
        self.last_sample_kinds: tuple[tuple[StepKind, ...], ...] = ()
        """The same per sample, see `Request.sample_kinds`."""
        self.users = 0
        self._on_begin: list[Callable[[PipelineCall], None]] = []
        self._on_completed: list[Callable[[PipelineCall], None]] = []

    def on_begin(self, callback: Callable[[PipelineCall], None], undo: ExitStack) -> None:
        """Call `callback` before each request; an error it raises is what the user's call raises."""
        self._on_begin.append(callback)
        undo.callback(self._on_begin.remove, callback)

    def on_completed(self, callback: Callable[[PipelineCall], None], undo: ExitStack) -> None:
        """Call `callback` after each request that returned normally, while its memory still exists."""
        self._on_completed.append(callback)
        undo.callback(self._on_completed.remove, callback)

    @contextmanager
    def open(self, pipe: Any) -> Iterator[None]:
        """The bracket around one call of `pipe`."""
        outer, request = self.current, PipelineCall(pipe)
        self.current = request
        try:
            for begin in tuple(self._on_begin):
                begin(request)
            with ExitStack() as undo:
                _end_steps_of(pipe.scheduler, request.end_step, undo)
                yield
            for completed in tuple(self._on_completed):
                completed(request)
        finally:
            self.current = outer
            self.last_kinds = tuple(request.kinds)
            self.last_sample_kinds = tuple(request.sample_kinds)
            request.memory.clear()


def track_calls(pipe: Any, undo: ExitStack) -> CallTracker:
    """The requests of `pipe`, watched until `undo` is closed; several optimizations share one watch."""
    original = type(pipe)
    requests: CallTracker | None = original.__dict__.get(_TRACKER)
    if requests is None:
        requests = CallTracker()
        pipe.__class__ = _tracked_class(original, requests)
    requests.users += 1
    undo.callback(_release, pipe, requests)
    return requests


def _release(pipe: Any, requests: CallTracker) -> None:
    requests.users -= 1
    if requests.users == 0:
        pipe.__class__ = type(pipe).__base__


def _tracked_class(original: type, requests: CallTracker) -> type:
    call = original.__call__

    @functools.wraps(call)
    def bracketed(self: Any, *args: Any, **kwargs: Any) -> Any:
        with requests.open(self):
            return call(self, *args, **kwargs)

    def reduce_as_original(self: Any, protocol: Any) -> Any:
        # Pickle and copy find a class by its name, which is the original's: give them the original.
        reduced: Any = object.__reduce_ex__(self, protocol)
        constructor, arguments, *state = reduced
        return (constructor, (original, *arguments[1:]), *state)

    body = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__call__": bracketed,
        "__reduce_ex__": reduce_as_original,
        _TRACKER: requests,
        STEP_KINDS: property(lambda _: requests.last_sample_kinds),
    }
    return type(original)(original.__name__, (original,), body)


def _end_steps_of(scheduler: Any, ended: Callable[[], None], undo: ExitStack) -> None:
    """Have every step of `scheduler` call `ended` when it is done, until `undo` is closed."""
    inner = scheduler.step

    @functools.wraps(inner)
    def step(*args: Any, **kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        ended()
        return result

    set_attribute(scheduler, "step", step, undo)
