"""Copies of a pipeline in threads, with one transformer: calls have states of their own or are refused."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Barrier, Event
from typing import Any

import numpy as np
import pytest
import torch

from kontext_fast.errors import InvalidInput, Refused
from kontext_fast.optimizations.acceleration import accelerate, current
from kontext_fast.optimizations.presets import PRESETS, resolve
from kontext_fast.optimizations.techniques.first_block_cache import FirstBlockCache
from kontext_fast.optimizations.techniques.fuse_qkv import FuseQKV
from kontext_fast.optimizations.techniques.prompt_cache import PromptCache
from kontext_fast.optimizations.techniques.reference_latents_cache import ReferenceLatentsCache
from kontext_fast.pipeline.device import Machine
from kontext_fast.pipeline.edit import STEP_KINDS
from kontext_fast.pipeline.load import load
from tests.pipelines import render, small_pipeline

Images = np.ndarray[Any, np.dtype[np.float32]]

THREADS = 8
PROMPTS = ("make the background red", "remove the circle", "make the star blue")


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Sums are split by the number of threads, which bit-for-bit comparisons must not depend on."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pipe() -> Any:
    return small_pipeline()


def copied(pipe: Any) -> Any:
    """A copy with a scheduler of its own, as diffusers' maintainers recommend one for each thread."""
    duplicate = copy.copy(pipe)
    duplicate.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    return duplicate


def second_pipeline(pipe: Any) -> Any:
    """Another pipeline with the same models, made before anything was accelerated."""
    other = type(pipe)(**pipe.components)
    other.set_progress_bar_config(disable=True)
    other.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    return other


def numbered(pipe: Any, number: int, **options: Any) -> Images:
    """One of many requests, which differ in photo, prompt, seed and steps."""
    arguments = {"prompts": (PROMPTS[number % 3],), "seeds": (number,), "steps": 2 + number % 2, "photo": number}
    return render(pipe, **{**arguments, **options})


def in_threads(pipes: list[Any]) -> list[Images]:
    """A numbered request of each pipeline, up to `THREADS` at once, the first ones started together."""
    together = Barrier(min(THREADS, len(pipes)), timeout=60)

    def start(number: int) -> Images:
        if number < THREADS:
            together.wait()
        return numbered(pipes[number], number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(start, range(len(pipes))))


CACHES: list[Any] = [
    PromptCache(),
    ReferenceLatentsCache(),
    FirstBlockCache(threshold=0.3, warmup_steps=1),
    FuseQKV(),
]


def title(plan: Any) -> str:
    return plan if isinstance(plan, str) else "several techniques"


Twin = Callable[[Any], Any]


def require_images_of_threads_equal(pipe: Any, plan: Any, requests: int, *others: Any) -> None:
    """`others`: accelerated pipelines on the transformer of `pipe`, which take turns with it."""
    with ExitStack() as stack:
        for each in (pipe, *others):
            stack.enter_context(accelerate(each, plan, quiet=True))
        alone = [numbered(pipe, number) for number in range(requests)]
        pipes = (pipe, *others)
        images = in_threads([copied(pipes[number % len(pipes)]) for number in range(requests)])
    np.testing.assert_array_equal(images, alone)


@pytest.mark.parametrize("plan", ["baseline", "turbo", "low_memory", "solver", CACHES], ids=title)
def test_images_of_threads_equal_their_own_alone(pipe: Any, plan: Any) -> None:
    require_images_of_threads_equal(pipe, plan, requests=THREADS)


@pytest.mark.slow
@pytest.mark.parametrize("two", [False, True], ids=["copies", "two pipelines"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_in_threads_equals_its_own_alone(pipe: Any, name: str, two: bool) -> None:
    try:
        resolve(name, Machine.detect("cpu"))
    except Refused as refused:
        pytest.skip(str(refused))
    if PRESETS[name].fitted_to is not None:  # to the whole of tiny
        pipe = load("tiny", device="cpu").pipe
        pipe.set_progress_bar_config(disable=True)
    require_images_of_threads_equal(pipe, name, 32, *([second_pipeline(pipe)] if two else []))


@pytest.mark.parametrize("plan", ["turbo", CACHES], ids=title)
def test_two_pipelines_on_one_transformer_do_not_mix(pipe: Any, plan: Any) -> None:
    other, untouched = second_pipeline(pipe), numbered(pipe, 0)
    first = accelerate(pipe, plan, quiet=True)
    alone = [numbered(pipe, number) for number in range(4)]
    second = accelerate(other, plan, quiet=True)
    images = in_threads([copied((pipe, other)[number % 2]) for number in range(4)])
    np.testing.assert_array_equal(images, alone)
    first.revert()
    assert current(pipe) is None
    assert current(other) is second
    np.testing.assert_array_equal(numbered(other, 3), alone[3])
    second.revert()
    assert type(pipe) is type(other)
    assert "forward" not in vars(pipe.transformer)
    np.testing.assert_array_equal(numbered(pipe, 0), untouched)


@contextmanager
def running(pipe: Any, **options: Any) -> Iterator[Future[Images]]:
    """A request of `pipe` in another thread, which stands after its first step during the body."""
    stands, go_on = Event(), Event()

    def stand(step: int) -> None:
        if step == 0:
            stands.set()
            assert go_on.wait(60)

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(numbered, pipe, 1, on_step=stand, **options)
        assert stands.wait(60)
        try:
            yield call
        finally:
            go_on.set()


def test_a_photo_has_no_part_in_calls_of_other_threads(pipe: Any) -> None:
    with accelerate(pipe, [FirstBlockCache(threshold=1e9, warmup_steps=1)], quiet=True):
        expected = numbered(pipe, 0, steps=4)
        for photo in (7, 8):
            with running(copied(pipe), photo=photo, steps=4) as call:
                np.testing.assert_array_equal(numbered(copied(pipe), 0, steps=4), expected)
            call.result()


def test_calls_of_an_unaccelerated_pipeline_stay_so(pipe: Any) -> None:
    other, expected = second_pipeline(pipe), numbered(pipe, 0)
    with accelerate(pipe, [FirstBlockCache(threshold=1e9, warmup_steps=1)], quiet=True) as acceleration:
        alone = numbered(pipe, 1)
        with running(pipe) as call:
            np.testing.assert_array_equal(numbered(other, 0), expected)
        np.testing.assert_array_equal(call.result(), alone)
        assert acceleration.last_step_kinds() == ["full", "skipped", "skipped"]


@pytest.mark.parametrize("plan", ["fast", CACHES], ids=title)
def test_other_pipeline_inside_of_a_call_is_refused(pipe: Any, plan: Any) -> None:
    other = second_pipeline(pipe)
    with accelerate(pipe, plan, quiet=True):
        alone = numbered(pipe, 1)

        def interrupt(step: int) -> None:
            if step == 0:
                with pytest.raises(InvalidInput, match="other prompts or positions"):
                    numbered(other, 0)

        np.testing.assert_array_equal(numbered(pipe, 1, on_step=interrupt), alone)


@pytest.mark.parametrize(
    ("twin", "message"), [(lambda pipe: pipe, "copy.copy"), (copy.copy, "scheduler")], ids=["itself", "its scheduler"]
)
def test_what_calls_cannot_share_is_refused(pipe: Any, twin: Twin, message: str) -> None:
    scheduler = type(pipe.scheduler)
    with accelerate(pipe, "fast", quiet=True):
        alone = numbered(pipe, 1)
        with running(pipe) as call, pytest.raises(InvalidInput, match=message):
            numbered(twin(pipe), 0)
        np.testing.assert_array_equal(call.result(), alone)
        assert type(pipe.scheduler) is scheduler
        assert "step" not in vars(pipe.scheduler)
        np.testing.assert_array_equal(numbered(copied(pipe), 1), alone)


def test_unaccelerated_pipeline_may_not_use_its_scheduler(pipe: Any) -> None:
    other = second_pipeline(pipe)
    other.scheduler = pipe.scheduler
    with accelerate(pipe, "fast", quiet=True):
        alone = numbered(pipe, 1)
        with running(pipe) as call, pytest.raises(InvalidInput, match="one of its own"):
            numbered(other, 0)
        np.testing.assert_array_equal(call.result(), alone)


def test_revert_during_a_call_is_refused(pipe: Any) -> None:
    acceleration = accelerate(pipe, "fast", quiet=True)
    alone = numbered(pipe, 1)
    with running(copied(pipe)) as call, pytest.raises(InvalidInput, match="when it has ended"):
        acceleration.revert()
    np.testing.assert_array_equal(call.result(), alone)
    acceleration.revert()
    assert current(pipe) is None


def test_copies_have_accelerations_and_step_kinds_apart(pipe: Any) -> None:
    with accelerate(pipe, [FirstBlockCache(schedule=(0,))], quiet=True) as acceleration:
        duplicate = copied(pipe)
        assert current(duplicate) not in (None, acceleration)
        numbered(pipe, 0, steps=2)
        numbered(duplicate, 0, steps=3)
        assert getattr(pipe, STEP_KINDS) == (("full",), ("skipped",))
        assert getattr(duplicate, STEP_KINDS) == (("full",), ("skipped",), ("skipped",))
    assert current(duplicate) is None
    np.testing.assert_array_equal(numbered(duplicate, 0), numbered(pipe, 0))


def unpickled(pipe: Any) -> Any:
    return pickle.loads(pickle.dumps(pipe))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, unpickled])
@pytest.mark.parametrize("plan", ["turbo", "low_memory", [FuseQKV(), FirstBlockCache()]], ids=title)
def test_deep_copies_are_unaccelerated_originals(pipe: Any, plan: Any, duplicate: Twin) -> None:
    untouched = numbered(pipe, 0)
    with accelerate(pipe, plan, quiet=True):
        fast = numbered(pipe, 0)
        other = duplicate(pipe)
        assert current(other) is None
        np.testing.assert_array_equal(numbered(other, 0), untouched)
        with accelerate(other, plan, quiet=True):
            np.testing.assert_array_equal(numbered(other, 0), fast)
        np.testing.assert_array_equal(numbered(pipe, 0), fast)
    for tokenizer in (pipe.tokenizer, pipe.tokenizer_2, other.tokenizer, other.tokenizer_2):
        assert "kontext_fast" not in "".join(vars(type(tokenizer)))


def _render_into(pipe: Any, results: Any) -> None:
    torch.set_num_threads(1)
    results.put(numbered(pipe, 0))


@pytest.mark.slow
def test_spawned_process_gets_the_original(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tied embeddings are one file, which the default strategy passes twice: spawning fails with stock diffusers too.
    monkeypatch.setattr("torch.multiprocessing._sharing_strategy", "file_system")
    untouched = numbered(pipe, 0)
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    with accelerate(pipe, "turbo", quiet=True):
        process = spawn.Process(target=_render_into, args=(pipe, results))
        process.start()
        np.testing.assert_array_equal(results.get(timeout=300), untouched)
        process.join()
