"""What a tracker knows of calls, and what is as before when they have ended: on a pipeline of a few lines."""

from __future__ import annotations

import contextvars
import copy
import gc
import inspect
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from kontext_fast.errors import Caution, InvalidInput
from kontext_fast.optimizations import call_tracking
from kontext_fast.optimizations.call_tracking import CallTracker, LastCall, PipelineCall, track_calls, tracker_of
from kontext_fast.pipeline.edit import CAUTIONS, STEP_KINDS
from kontext_fast.pipeline.previews import AROUND
from tests.pipelines import small_pipeline


class Short:
    """A pipeline as far as its calls are concerned."""

    def __init__(self, tokenizer: Any = None) -> None:
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        self.tokenizer = tokenizer
        self.num_timesteps = 0

    def __call__(self, prompt: str, steps: int = 2, *, on_step: Callable[[], object] | None = None) -> str:
        """Moves nothing."""
        self.scheduler.set_timesteps(steps)
        self.num_timesteps = len(self.scheduler.timesteps)
        sample = torch.zeros(1, 2)
        for time in self.scheduler.timesteps:
            if on_step is not None:
                on_step()
            (sample,) = self.scheduler.step(sample, time, sample, return_dict=False)
        return self.shout(prompt)

    def shout(self, prompt: str, mark: str = "!") -> str:
        return prompt + mark


class Longer(Short):
    pass


@pytest.fixture
def pipe() -> Any:
    return Short()


@pytest.fixture
def undo() -> Iterator[ExitStack]:
    """Whatever happened: no call is kept, as one that ended must not be."""
    with ExitStack() as stack:
        yield stack
    assert not call_tracking._claims


def test_running_call_is_known_by_its_arguments(pipe: Any, undo: ExitStack) -> None:
    calls, seen = track_calls(pipe, undo), []

    def look() -> None:
        call = calls.current
        assert call is not None
        assert (call.pipe, call.tracker, call.total_steps) == (pipe, calls, 3)
        assert call.arguments == {"prompt": "red", "steps": 3, "on_step": look}
        assert (call.exact_times, call.place, calls.running_calls) == (False, None, 1)
        seen.append(call.step)

    assert pipe("red", 3, on_step=look) == "red!"
    assert seen == [0, 1, 2]
    assert calls.current is None
    assert calls.running_calls == 0
    assert inspect.signature(pipe.__call__) == inspect.signature(Short().__call__)
    assert PipelineCall(pipe).arguments == {}


def test_wrong_arguments_are_told_by_the_call_itself(pipe: Any, undo: ExitStack) -> None:
    begun: list[PipelineCall] = []
    track_calls(pipe, undo).on_begin(begun.append, undo)
    with pytest.raises(TypeError, match=r"Short\.__call__\(\) missing 1 required positional argument: 'prompt'"):
        pipe(steps=2)
    assert not begun


@pytest.mark.parametrize(
    ("failing", "expected"),
    [
        (None, ["begin", "completed", "end"]),
        ("begin", ["begin", "end"]),
        ("steps", ["begin", "end"]),
        ("completed", ["begin", "completed", "end"]),
    ],
)
def test_callbacks_run_around_a_call_also_after_an_error(
    pipe: Any, undo: ExitStack, failing: str | None, expected: list[str]
) -> None:
    calls, happened = track_calls(pipe, undo), []

    def note(word: str) -> Callable[[PipelineCall], None]:
        def callback(call: PipelineCall) -> None:
            happened.append(word)
            assert call.memory.setdefault("kept", "here") == "here"
            if word == failing:
                raise ValueError(word)

        return callback

    def fail() -> None:
        if failing == "steps":
            raise ValueError("steps")

    with ExitStack() as callbacks:
        calls.on_begin(note("begin"), callbacks)
        calls.on_completed(note("completed"), callbacks)
        calls.on_end(note("end"), callbacks)
        if failing is None:
            pipe("red")
        else:
            with pytest.raises(ValueError, match=failing):
                pipe("red", on_step=fail)
    assert happened == expected
    assert calls.current is None
    pipe("red")
    assert happened == expected


def test_memory_is_empty_after_a_call(pipe: Any, undo: ExitStack) -> None:
    calls = track_calls(pipe, undo)
    kept: list[PipelineCall] = []
    calls.on_begin(kept.append, undo)
    calls.on_begin(lambda call: call.memory.update(large="tensor"), undo)
    pipe("red")
    assert kept[0].memory == {}


def test_last_call_is_known_of_each_pipeline_and_of_all(pipe: Any, undo: ExitStack) -> None:
    calls, other = track_calls(pipe, undo), copy.copy(pipe)
    assert calls.last == calls.last_of(pipe) == calls.last_of(other) == LastCall((), (), ())

    def mark() -> None:
        call = calls.current
        assert call is not None
        call.mark(*(("skipped", "full") if call.step else ("skipped", "skipped")))
        if call.step:
            with pytest.warns(Caution, match="mind this"):
                call.caution("mind this")

    pipe("red", on_step=mark)
    kinds = (("skipped", "skipped"), ("skipped", "full"))
    assert calls.last == calls.last_of(pipe) == LastCall(("skipped", "full"), kinds, ("mind this",))
    assert (getattr(pipe, STEP_KINDS), getattr(pipe, CAUTIONS)) == (kinds, ("mind this",))
    other("red", 1)
    assert calls.last == calls.last_of(other) == LastCall(("full",), (("full",),), ())
    assert getattr(pipe, CAUTIONS) == ("mind this",)
    calls.detach(pipe)
    calls.close()
    for name in (STEP_KINDS, CAUTIONS):
        with pytest.raises(AttributeError, match=r"^The last call was not tracked\.$"):
            getattr(other, name)


def test_member_is_given_to_every_class_until_it_is_undone(pipe: Any, undo: ExitStack) -> None:
    calls, longer = track_calls(pipe, undo), Longer()
    with ExitStack() as first:
        calls.set_member("word", lambda original: original.__name__, first)
        assert pipe.word == "Short"
        with ExitStack() as second:
            calls.set_member("word", lambda original: original.__name__.upper(), second)
            calls.attach(longer)
            assert (pipe.word, longer.word) == ("SHORT", "LONGER")
        assert (pipe.word, longer.word) == ("Short", "Longer")
    assert not hasattr(pipe, "word")
    assert not hasattr(longer, "word")
    calls.detach(longer)
    assert type(longer) is Longer
    again = Longer()
    calls.attach(again)
    assert not hasattr(again, "word")
    calls.detach(again)


def test_replaced_method_is_that_of_tracked_pipelines(pipe: Any, undo: ExitStack) -> None:
    calls = track_calls(pipe, undo)
    with ExitStack() as replaced:
        calls.replace_method(pipe, "shout", lambda shout, args, kwargs: shout(*args, **kwargs) * 2, replaced)
        assert pipe.shout("red", mark="?") == "red?red?"
        assert copy.copy(pipe).shout("red") == "red!red!"
        assert Short().shout("red") == "red!"
        assert pipe.shout.__name__ == "shout"
    assert pipe.shout("red") == "red!"


def test_pipeline_is_tracked_until_released_as_often_as_attached(pipe: Any) -> None:
    calls = CallTracker()
    for _ in range(3):
        calls.attach(pipe)
    assert type(pipe).__mro__[1] is Short
    for _ in range(2):
        calls.release(pipe)
        assert calls.in_use
        assert tracker_of(pipe) is calls
    calls.release(pipe)
    assert not calls.in_use
    assert type(pipe) is Short
    for _ in range(2):
        calls.attach(pipe)
    for _ in range(2):
        calls.detach(pipe)
        assert type(pipe) is Short
        assert not calls.in_use


def test_closed_tracker_lets_calls_run_as_they_are(pipe: Any, undo: ExitStack) -> None:
    calls, begun = track_calls(pipe, undo), []
    calls.on_begin(begun.append, undo)
    twin = copy.copy(pipe)
    assert type(twin) is type(pipe)
    assert vars(twin) == vars(pipe)
    assert tracker_of(twin) is calls
    calls.close()
    assert not calls.in_use
    assert twin("red") == "red!"
    assert not begun
    assert tracker_of(twin) is None
    assert tracker_of(Short()) is None
    with ExitStack() as again:
        assert track_calls(twin, again) is not calls
        assert type(twin).__mro__[1] is Short


def test_tracker_keeps_no_pipeline_alive() -> None:
    undo, pipe = ExitStack(), Short()
    calls = track_calls(pipe, undo)
    pipe("red")
    reference = weakref.ref(pipe)
    del pipe
    gc.collect()
    assert reference() is None
    assert not calls.in_use
    undo.close()


def test_call_belongs_to_its_thread_and_its_tracker(pipe: Any, undo: ExitStack) -> None:
    outer, other = track_calls(pipe, undo), Longer()
    inner = track_calls(other, undo)

    def look_inside() -> None:
        assert inner.current is not None
        assert inner.current.pipe is other
        assert outer.current is not None
        assert outer.current.pipe is pipe

    def look() -> None:
        assert inner.current is None
        other("blue", on_step=look_inside)
        context = contextvars.copy_context()
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(context.run, lambda: outer.current).result() is None

    pipe("red", on_step=look)


def test_scheduler_has_a_class_of_its_own_during_a_call(pipe: Any, undo: ExitStack) -> None:
    calls, made = track_calls(pipe, undo), []

    def look() -> None:
        assert type(pipe.scheduler).__mro__[1] is FlowMatchEulerDiscreteScheduler
        made.append(type(pipe.scheduler).from_config(pipe.scheduler.config))

    own = pipe.scheduler
    pipe("red", on_step=look)
    assert type(own) is FlowMatchEulerDiscreteScheduler
    pipe.scheduler = made[0]
    pipe("red", 3)
    assert calls.last.kinds == ("full",) * 3
    assert type(made[0]) is FlowMatchEulerDiscreteScheduler
    assert set(vars(own)) == set(vars(pipe.scheduler))


def test_step_that_someone_put_on_a_scheduler_ends_steps_too(pipe: Any, undo: ExitStack) -> None:
    calls, ran = track_calls(pipe, undo), []
    inner = pipe.scheduler.step

    def step(*args: Any, **kwargs: Any) -> Any:
        ran.append(args)
        return inner(*args, **kwargs)

    pipe.scheduler.step = step
    pipe("red", 3)
    assert len(ran) == 3
    assert calls.last.kinds == ("full",) * 3
    assert pipe.scheduler.step is step


class StandIn(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    pass


def counting(counted: list[str], word: str) -> Any:
    """A method as previews put it on a scheduler."""

    def around(method: Callable[..., Any]) -> Callable[..., Any]:
        def counts(*args: Any, **kwargs: Any) -> Any:
            counted.append(word)
            return method(*args, **kwargs)

        return counts

    own = around(lambda *_: None)
    setattr(own, AROUND, around)
    return own


def test_stand_in_runs_with_what_was_put_on_the_scheduler(pipe: Any, undo: ExitStack) -> None:
    calls, counted, own = track_calls(pipe, undo), list[str](), pipe.scheduler
    own.step, own.set_timesteps = counting(counted, "step"), counting(counted, "times")
    own.note = "nothing of a solver"
    put_on = dict(vars(own))

    def look() -> None:
        assert type(pipe.scheduler).__mro__[1] is StandIn
        assert not hasattr(pipe.scheduler, "note")
        with ThreadPoolExecutor(1) as thread, pytest.raises(InvalidInput, match="in a call of an accelerated pipeline"):
            thread.submit(pipe.scheduler.step).result()

    with ExitStack() as replaced:
        calls.replace_scheduler(lambda _: StandIn(), replaced)
        pipe("red", 3, on_step=look)
    assert counted == ["times", "step", "step", "step"]
    assert calls.last.kinds == ("full",) * 3
    assert pipe.scheduler is own
    assert vars(own) == put_on
    assert type(own) is FlowMatchEulerDiscreteScheduler
    del own.step, own.set_timesteps
    pipe("red", on_step=lambda: counted.append(type(pipe.scheduler).__mro__[1].__name__))
    assert counted[4:] == ["FlowMatchEulerDiscreteScheduler"] * 2


def test_stand_in_is_made_of_the_scheduler_and_serves_one_call(pipe: Any, undo: ExitStack) -> None:
    stand_ins: dict[Any, Any] = {}
    track_calls(pipe, undo).replace_scheduler(lambda own: stand_ins.setdefault(own, StandIn()), undo)

    def look() -> None:
        assert pipe.scheduler is stand_ins[own]
        with ThreadPoolExecutor(1) as thread, pytest.raises(InvalidInput, match="in a call of an accelerated pipeline"):
            thread.submit(pipe.scheduler.step).result()

    own = pipe.scheduler
    pipe("red", on_step=look)
    assert list(stand_ins) == [own]


def test_step_that_a_stand_in_would_not_run_is_refused(pipe: Any, undo: ExitStack) -> None:
    calls = track_calls(pipe, undo)
    calls.replace_scheduler(lambda _: StandIn(), undo)
    pipe.scheduler.step = pipe.scheduler.step
    with pytest.raises(InvalidInput) as caught:
        pipe("red")
    assert str(caught.value) == (
        "Something replaced step of this scheduler, which a solver would not run; take that off "
        "(del pipe.scheduler.step), or use a preset without a solver."
    )
    assert calls.running_calls == 0
    assert type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler
    del pipe.scheduler.step
    pipe("red")


def test_tokenizers_of_copies_take_turns(undo: ExitStack) -> None:
    pipe = small_pipeline()
    kinds = type(pipe.tokenizer), type(pipe.tokenizer_2)
    calls = track_calls(pipe, undo)
    for tokenizer, kind in zip((pipe.tokenizer, pipe.tokenizer_2), kinds, strict=True):
        assert type(tokenizer).__mro__[1] is kind
        assert {"__call__", "encode", "tokenize"} <= set(vars(type(tokenizer)))
    calls.detach(pipe)
    assert (type(pipe.tokenizer), type(pipe.tokenizer_2)) == kinds


def test_attribute_of_the_trackers_name_is_no_tracker() -> None:
    other = type("Other", (), {call_tracking._TRACKER: SimpleNamespace(in_use=True)})()
    assert tracker_of(other) is None
