"""The calls `pipe(...)` of one pipeline, as optimizations see them: their beginning, their steps and their end.

The class of the pipeline is replaced by a subclass of its own that differs in `__call__` only; no class is patched, so
other pipelines are unaffected. Steps are counted by wrapping `step` of the scheduler that the call uses, which the user
may have replaced since.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from kontext_fast.errors import Caution
from kontext_fast.optimizations.patching import set_attribute
from kontext_fast.pipeline.edit import CAUTIONS, STEP_KINDS, joint_kind
from kontext_fast.records.schema import StepKind

_TRACKER = "_kontext_fast_calls"


class PipelineCall:
    """One call of the pipeline while it runs."""

    def __init__(self, pipe: Any, arguments: Mapping[str, Any] | None = None) -> None:
        self.pipe = pipe
        self.arguments = arguments or {}
        """What the pipeline was called with, by name, defaults included."""
        self.exact_times = False
        """Whether the transformer is told the times of the scheduler as they are. Otherwise it is told them as the
        pipeline does, rounded to the precision of the latents."""
        self.place: tuple[int, int] | None = None
        """Where a call of one step stands for one of many: which step it is, from 0, and of how many."""
        self.cautions: list[str] = []
        """What must be said beside the result, one sentence each."""
        self.kinds: list[StepKind] = []
        """Kind of each step that has ended: skipped where every sample skipped it."""
        self.sample_kinds: list[tuple[StepKind, ...]] = []
        """The same per sample of the batch; one entry for all of them where nothing tells them apart."""
        self.memory: dict[object, Any] = {}
        """State of optimizations between steps; cleared when the call ends, also by an error."""
        self._passes = 0
        self._marks: list[tuple[StepKind, ...]] = []
        self._branches: list[list[tuple[StepKind, ...]]] = []

    @property
    def step(self) -> int:
        """0-based index of the step that is running."""
        return len(self.kinds)

    @property
    def total_steps(self) -> int:
        """Steps that this call will run; known once its first step has begun."""
        return int(self.pipe.num_timesteps)

    def caution(self, sentence: str) -> None:
        """Have `sentence` said beside the result of this call, and warn of it."""
        self.cautions.append(sentence)
        warnings.warn(sentence, Caution, stacklevel=2)

    def begin_pass(self) -> int:
        """0-based index, within its step, of the transformer call that begins now.

        Under true CFG every step calls the transformer twice: pass 0 is the positive prompt, pass 1 the negative one.
        """
        self._passes += 1
        return self._passes - 1

    def mark(self, *kinds: StepKind) -> None:
        """Record the kind of the running pass, for all samples of the batch or for each of them.

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
    """The calls of one pipeline. It holds no reference to the pipeline between calls."""

    def __init__(self) -> None:
        self.current: PipelineCall | None = None
        """The innermost call that is running; None between calls."""
        self.last_kinds: tuple[StepKind, ...] = ()
        """Kinds of the steps of the most recent call, as far as it got."""
        self.last_sample_kinds: tuple[tuple[StepKind, ...], ...] = ()
        """The same per sample, see `PipelineCall.sample_kinds`."""
        self.last_cautions: tuple[str, ...] = ()
        """Of the most recent call."""
        self.users = 0
        self._on_begin: list[Callable[[PipelineCall], None]] = []
        self._on_completed: list[Callable[[PipelineCall], None]] = []

    def on_begin(self, callback: Callable[[PipelineCall], None], undo: ExitStack) -> None:
        """Run `callback` before each call; an error in it is raised by the user's call."""
        self._on_begin.append(callback)
        undo.callback(self._on_begin.remove, callback)

    def on_completed(self, callback: Callable[[PipelineCall], None], undo: ExitStack) -> None:
        """Run `callback` after each call that returned normally, before its memory is cleared."""
        self._on_completed.append(callback)
        undo.callback(self._on_completed.remove, callback)

    @contextmanager
    def open(self, pipe: Any, arguments: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Track one call of `pipe` with `arguments`, by name."""
        outer, call = self.current, PipelineCall(pipe, arguments)
        self.current = call
        try:
            for begin in tuple(self._on_begin):
                begin(call)
            with ExitStack() as undo:
                _end_steps_of(pipe.scheduler, call.end_step, undo)
                yield
            for completed in tuple(self._on_completed):
                completed(call)
        finally:
            self.current = outer
            self.last_kinds = tuple(call.kinds)
            self.last_sample_kinds = tuple(call.sample_kinds)
            self.last_cautions = tuple(call.cautions)
            call.memory.clear()


def track_calls(pipe: Any, undo: ExitStack) -> CallTracker:
    """The tracker of the calls of `pipe`, until `undo` is closed; several optimizations share one."""
    original = type(pipe)
    calls: CallTracker | None = original.__dict__.get(_TRACKER)
    if calls is None:
        calls = CallTracker()
        pipe.__class__ = _tracked_class(original, calls)
    calls.users += 1
    undo.callback(_release, pipe, calls)
    return calls


def _release(pipe: Any, calls: CallTracker) -> None:
    calls.users -= 1
    if calls.users == 0:
        pipe.__class__ = type(pipe).__base__


def _tracked_class(original: type, calls: CallTracker) -> type:
    call = original.__call__
    signature = inspect.signature(call)

    @functools.wraps(call)
    def bracketed(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError:
            # The call itself says best what is wrong with its arguments.
            return call(self, *args, **kwargs)
        bound.apply_defaults()
        _, *names = bound.arguments
        with calls.open(self, {name: bound.arguments[name] for name in names}):
            return call(self, *args, **kwargs)

    def reduce_as_original(self: Any, protocol: Any) -> Any:
        # Pickle and copy look a class up by its name, which is that of the original.
        reduced: Any = object.__reduce_ex__(self, protocol)
        constructor, arguments, *state = reduced
        return (constructor, (original, *arguments[1:]), *state)

    body = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__call__": bracketed,
        "__reduce_ex__": reduce_as_original,
        _TRACKER: calls,
        STEP_KINDS: property(lambda _: calls.last_sample_kinds),
        CAUTIONS: property(lambda _: calls.last_cautions),
    }
    return type(original)(original.__name__, (original,), body)


def _end_steps_of(scheduler: Any, ended: Callable[[], None], undo: ExitStack) -> None:
    """Call `ended` after every step of `scheduler`, until `undo` is closed."""
    inner = scheduler.step

    @functools.wraps(inner)
    def step(*args: Any, **kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        ended()
        return result

    set_attribute(scheduler, "step", step, undo)
