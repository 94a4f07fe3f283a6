"""The calls `pipe(...)` of accelerated pipelines, as optimizations see them: their beginning, their steps, their end.

The class of an accelerated pipeline is replaced by a subclass of its own, which a shallow copy of the pipeline keeps;
no class is patched, so other pipelines are unaffected. Several pipelines can share one tracker, as they share the
modules that were accelerated. A call belongs to the context (thread, task or greenlet) in which it runs, so calls of
copies in several threads are told apart; what cannot be told apart, such as one scheduler in two calls, is refused.
"""

from __future__ import annotations

import functools
import inspect
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock, get_ident
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

from kontext_fast.errors import Caution, InvalidInput
from kontext_fast.optimizations.patching import (
    Replacement,
    device_without_hooks,
    original_class,
    serialize_calls,
    set_attribute,
    subclass,
)
from kontext_fast.pipeline.edit import CAUTIONS, STEP_KINDS, joint_kind
from kontext_fast.pipeline.previews import AROUND
from kontext_fast.records.schema import StepKind

_TRACKER = "_kontext_fast_calls"

_DEVICE = "_execution_device"


class PipelineCall:
    """One call of a pipeline while it runs."""

    def __init__(
        self, pipe: Any, tracker: CallTracker | None = None, arguments: Mapping[str, Any] | None = None
    ) -> None:
        self.pipe = pipe
        self.tracker = tracker
        self.thread = get_ident()
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
        self._inputs: list[tuple[Any, ...]] = []
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

    def begin_pass(self, *inputs: Any) -> int:
        """0-based index, within its step, of the transformer call that begins now.

        Under true CFG every step calls the transformer twice: pass 0 is the positive prompt, pass 1 the negative one.
        `inputs` are those that a pipeline passes unchanged at every step, such as positions. Raises InvalidInput where
        they are other objects than before: then another pipeline called the transformer in the middle of this call.
        """
        index = self._passes
        if index == len(self._inputs):
            self._inputs.append(inputs)
        elif any(now is not before for now, before in zip(inputs, self._inputs[index], strict=True)):
            raise InvalidInput(
                "The transformer got other prompts or positions than at the step before; keep them over a call, and "
                "run other pipelines with this transformer before or after it."
            )
        self._passes += 1
        return index

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

    @property
    def runs_here(self) -> bool:
        """Whether this is a call of the running thread and context."""
        return self.thread == get_ident() and self in _running.get()


_running: ContextVar[tuple[PipelineCall, ...]] = ContextVar("running_calls", default=())
"""The calls of this context, outermost first. A thread can hand its context to another: see `PipelineCall.thread`."""

_claims: dict[int, PipelineCall] = {}
"""By identity of a pipeline or scheduler: the running call that uses it."""

_claims_lock = Lock()


@dataclass
class LastCall:
    """What is known of the most recent call. It refers to nothing else, so that it can be kept longer than weights."""

    kinds: tuple[StepKind, ...] = ()
    """Of its steps, as far as it got."""
    sample_kinds: tuple[tuple[StepKind, ...], ...] = ()
    """The same per sample, see `PipelineCall.sample_kinds`."""
    cautions: tuple[str, ...] = ()


class CallTracker:
    """The calls of the pipelines that share one acceleration. It holds no reference to them between calls."""

    def __init__(self) -> None:
        self.last = LastCall()
        self._users: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._tokenizers: WeakKeyDictionary[Any, ExitStack] = WeakKeyDictionary()
        self._last_calls: WeakKeyDictionary[Any, LastCall] = WeakKeyDictionary()
        self._pipeline_classes: dict[type, type] = {}
        self._scheduler_classes: dict[type, type] = {}
        self._members: dict[str, Callable[[type], Any]] = {}
        self._stand_in: Callable[[Any], Any] | None = None
        self._on_begin: list[Callable[[PipelineCall], None]] = []
        self._on_completed: list[Callable[[PipelineCall], None]] = []
        self._on_end: list[Callable[[PipelineCall], None]] = []
        self._running = 0
        self._closed = False

    @property
    def current(self) -> PipelineCall | None:
        """The innermost call that runs in this thread and context; None where there is none."""
        return next((call for call in reversed(_running.get()) if call.tracker is self and call.runs_here), None)

    @property
    def in_use(self) -> bool:
        """Whether a pipeline is accelerated with it still."""
        return bool(self._users) and not self._closed

    @property
    def running_calls(self) -> int:
        """Of all of its pipelines, in all threads."""
        return self._running

    def on_begin(self, callback: Callable[[PipelineCall], None], undo: ExitStack) -> None:
        """Run `callback` before each call; an error in it is raised by the user's call."""
        _add(self._on_begin, callback, undo)

    def on_completed(self, callback: Callable[[PipelineCall], None], undo: ExitStack) -> None:
        """Run `callback` after each call that returned normally, before its memory is cleared."""
        _add(self._on_completed, callback, undo)

    def on_end(self, callback: Callable[[PipelineCall], None], undo: ExitStack) -> None:
        """Run `callback` after each call that began, also after an error in it."""
        _add(self._on_end, callback, undo)

    def replace_scheduler(self, stand_in: Callable[[Any], Any], undo: ExitStack) -> None:
        """Have every call run with `stand_in(scheduler)` in place of the scheduler of its pipeline."""
        set_attribute(self, "_stand_in", stand_in, undo)

    def set_member(self, name: str, make: Callable[[type], Any], undo: ExitStack) -> None:
        """Give the class of every tracked pipeline the member `name`, made from its original class; the last one that
        was given counts."""
        undo.callback(self._put_member, name, self._members.get(name))
        self._put_member(name, make)

    def replace_method(self, pipe: Any, name: str, replacement: Replacement, undo: ExitStack) -> None:
        """Replace the method `name` of every tracked pipeline. Raises InvalidInput if `pipe` has one of its own."""
        if name in vars(pipe):
            raise InvalidInput(
                f"Something replaced {name} of this pipeline; take that off (del pipe.{name}), then accelerate again."
            )

        def make(original: type) -> Any:
            method = getattr(original, name)

            @functools.wraps(method)
            def replaced(self: Any, *args: Any, **kwargs: Any) -> Any:
                return replacement(MethodType(method, self), args, kwargs)

            return replaced

        self.set_member(name, make, undo)

    def attach(self, pipe: Any) -> None:
        """Track the calls of `pipe`, until it is detached as often as it was attached."""
        if pipe not in self._users:
            pipe.__class__ = self._pipeline_class(original_class(type(pipe)))
            self._tokenizers[pipe] = _serialize_tokenizers(pipe)
        self._users[pipe] = self._users.get(pipe, 0) + 1

    def release(self, pipe: Any) -> None:
        """Undo one `attach`."""
        if self._users.get(pipe, 0) > 1:
            self._users[pipe] -= 1
        else:
            self.detach(pipe)

    def detach(self, pipe: Any) -> None:
        """Track the calls of `pipe` no longer, however often it was attached."""
        self._users.pop(pipe, None)
        if pipe in self._tokenizers:
            self._tokenizers.pop(pipe).close()
        if vars(type(pipe)).get(_TRACKER) is self:
            pipe.__class__ = original_class(type(pipe))

    def close(self) -> None:
        """Track no new calls. Raises InvalidInput while one runs."""
        with _claims_lock:
            if self._running:
                raise InvalidInput("A call of this pipeline is running; revert the acceleration when it has ended.")
            self._closed = True

    def last_of(self, pipe: Any) -> LastCall:
        """The most recent call of `pipe`."""
        return self._last_calls.get(pipe) or LastCall()

    @contextmanager
    def open(self, pipe: Any, arguments: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Track one call of `pipe` with `arguments`, by name.

        Raises InvalidInput where the pipeline or its scheduler is in another call.
        """
        call = PipelineCall(pipe, self, arguments)
        with ExitStack() as undo:
            self._claim(call, undo)
            token = _running.set((*_running.get(), call))
            undo.callback(_running.reset, token)
            undo.callback(call.memory.clear)
            undo.callback(self._remember, call)
            for ended in tuple(self._on_end):
                undo.callback(ended, call)
            for begin in tuple(self._on_begin):
                begin(call)
            yield
            for completed in tuple(self._on_completed):
                completed(call)

    def _claim(self, call: PipelineCall, undo: ExitStack) -> None:
        pipe, scheduler = call.pipe, call.pipe.scheduler
        with _claims_lock:
            outer = _claims.get(id(pipe))
            if outer is not None and not outer.runs_here:
                raise InvalidInput(
                    "This pipeline is in another call; give every thread a copy of it, made by copy.copy(pipe), with a "
                    "scheduler of its own, made by type(pipe.scheduler).from_config(pipe.scheduler.config)."
                )
            if id(scheduler) in _claims:
                raise InvalidInput(
                    "The scheduler of this pipeline is in another call; give every copy of a pipeline one of its own: "
                    "pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)."
                )
            _claims[id(pipe)] = _claims[id(scheduler)] = call
            self._running += 1
        undo.callback(self._give_up, call, scheduler, outer)
        if self._stand_in is not None:
            own = {name: value for name, value in vars(scheduler).items() if name == "step" or hasattr(value, AROUND)}
            scheduler = self._stand_in(scheduler)
            for name, method in own.items():
                setattr(scheduler, name, _around(method, getattr(scheduler, name)))
            undo.callback(vars(pipe).__setitem__, "scheduler", pipe.scheduler)
            # Past the pipeline's own way, which would write this class into what `save_pretrained` stores.
            vars(pipe)["scheduler"] = scheduler
            with _claims_lock:
                _claims[id(scheduler)] = call
            undo.callback(_claims.pop, id(scheduler))
        self._end_steps_of(scheduler, call, undo)

    def _give_up(self, call: PipelineCall, scheduler: Any, outer: PipelineCall | None) -> None:
        with _claims_lock:
            self._running -= 1
            del _claims[id(scheduler)]
            if outer is None:
                del _claims[id(call.pipe)]
            else:
                _claims[id(call.pipe)] = outer

    def _end_steps_of(self, scheduler: Any, call: PipelineCall, undo: ExitStack) -> None:
        """End a step of `call` after every step of `scheduler`, which serves no other call until `undo` is closed.

        By a class of its own, so that copies of the scheduler, which a server makes per request, do not have it.
        """
        # One that was made from the configuration of a scheduler in a call has the class of that one.
        original = original_class(type(scheduler))
        if original not in self._scheduler_classes:
            self._scheduler_classes[original] = _scheduler_class(original)
        scheduler.__class__ = self._scheduler_classes[original]
        undo.callback(setattr, scheduler, "__class__", original)
        if "step" in vars(scheduler):  # which hides that of a class
            set_attribute(scheduler, "step", _ending_step(call, scheduler.step), undo)

    def _remember(self, call: PipelineCall) -> None:
        last = LastCall(tuple(call.kinds), tuple(call.sample_kinds), tuple(call.cautions))
        self._last_calls[call.pipe] = last
        vars(self.last).update(vars(last))

    def _pipeline_class(self, original: type) -> type:
        if original not in self._pipeline_classes:
            cls = _pipeline_class(original, self)
            for name, make in self._members.items():
                setattr(cls, name, make(original))
            self._pipeline_classes[original] = cls
        return self._pipeline_classes[original]

    def _put_member(self, name: str, make: Callable[[type], Any] | None) -> None:
        if make is None:
            del self._members[name]
        else:
            self._members[name] = make
        for original, cls in self._pipeline_classes.items():
            if make is None:
                delattr(cls, name)
            else:
                setattr(cls, name, make(original))


def track_calls(pipe: Any, undo: ExitStack) -> CallTracker:
    """The tracker of the calls of `pipe`, until `undo` is closed; several optimizations share one."""
    tracker = tracker_of(pipe)
    if tracker is None:
        tracker = CallTracker()
    tracker.attach(pipe)
    undo.callback(_release, tracker, weakref.ref(pipe))
    return tracker


def _release(tracker: CallTracker, pipe: weakref.ref[Any]) -> None:
    if (alive := pipe()) is not None:
        tracker.release(alive)


def tracker_of(pipe: Any) -> CallTracker | None:
    """The tracker of the calls of `pipe`, also where it is a copy of a tracked pipeline; None where nothing tracks."""
    tracker = vars(type(pipe)).get(_TRACKER)
    return tracker if isinstance(tracker, CallTracker) and tracker.in_use else None


def _serialize_tokenizers(pipe: Any) -> ExitStack:
    """Copies share tokenizers, which keep the padding and the length of a call in themselves while it runs."""
    undo = ExitStack()
    for name in ("tokenizer", "tokenizer_2"):
        if (tokenizer := getattr(pipe, name, None)) is not None:
            serialize_calls(tokenizer, ("__call__", "encode", "tokenize"), undo)
    return undo


def _add(callbacks: list[Callable[[PipelineCall], None]], callback: Any, undo: ExitStack) -> None:
    callbacks.append(callback)
    undo.callback(callbacks.remove, callback)


def _pipeline_class(original: type, tracker: CallTracker) -> type:
    call = original.__call__
    signature = inspect.signature(call)

    @functools.wraps(call)
    def bracketed(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not tracker.in_use:
            return call(self, *args, **kwargs)
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError:
            # The call itself says best what is wrong with its arguments.
            return call(self, *args, **kwargs)
        bound.apply_defaults()
        _, *names = bound.arguments
        with tracker.open(self, {name: bound.arguments[name] for name in names}):
            return call(self, *args, **kwargs)

    def copy_tracked(self: Any) -> Any:
        duplicate = object.__new__(type(self))
        vars(duplicate).update(vars(self))
        return duplicate

    def last(self: Any) -> LastCall:
        if not tracker.in_use:
            raise AttributeError("The last call was not tracked.")
        return tracker.last_of(self)

    body: dict[str, Any] = {
        "__call__": bracketed,
        "__copy__": copy_tracked,
        _TRACKER: tracker,
        STEP_KINDS: property(lambda pipe: last(pipe).sample_kinds),
        CAUTIONS: property(lambda pipe: last(pipe).cautions),
    }
    if (place := _diffusers_device(original)) is not None:
        body[_DEVICE] = property(lambda pipe: device_without_hooks(pipe) or place(pipe))
    return subclass(original, body)


def _diffusers_device(original: type) -> Callable[[Any], Any] | None:
    """How diffusers finds the device of a pipeline of this class, as every call does; None for a way of its own."""
    from diffusers import DiffusionPipeline

    for name in (_DEVICE, "device"):
        if getattr(original, name, None) is not getattr(DiffusionPipeline, name):
            return None
    find: Callable[[Any], Any] = DiffusionPipeline._execution_device.fget
    return find


def _scheduler_class(original: type) -> type:
    step, set_timesteps = original.step, original.set_timesteps  # type: ignore[attr-defined]

    @functools.wraps(step)
    def tracked_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _ending_step(_call_with(self), MethodType(step, self))(*args, **kwargs)

    @functools.wraps(set_timesteps)
    def tracked_set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        _require_here(_call_with(self))
        return set_timesteps(self, *args, **kwargs)

    return subclass(original, {"step": tracked_step, "set_timesteps": tracked_set_timesteps})


def _ending_step(call: PipelineCall | None, step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def ending(*args: Any, **kwargs: Any) -> Any:
        _require_here(call)
        result = step(*args, **kwargs)
        if call is not None:
            call.end_step()
        return result

    return ending


def _around(own_method: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    """What `own_method` is to the scheduler that it was put on, of `method`, that of its stand-in."""
    around: Callable[[Callable[..., Any]], Callable[..., Any]] | None = getattr(own_method, AROUND, None)
    if around is None:
        raise InvalidInput(
            "Something replaced step of this scheduler, which a solver would not run; take that off "
            "(del pipe.scheduler.step), or use a preset without a solver."
        )
    return around(method)


def _call_with(scheduler: Any) -> PipelineCall | None:
    with _claims_lock:
        return _claims.get(id(scheduler))


def _require_here(call: PipelineCall | None) -> None:
    if call is not None and not call.runs_here:
        raise InvalidInput(
            "This scheduler is in a call of an accelerated pipeline; give every other pipeline one of its own: "
            "pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)."
        )
