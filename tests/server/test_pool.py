"""The pool with worker processes that run a script in place of a model: acceptance, deadlines, failures, the end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kontext_fast.errors import KontextError
from kontext_fast.server.jobs import Event, Finished, Job, JobFailed, Started, StepDone
from kontext_fast.server.placement import WorkerPlan
from kontext_fast.server.pool import JobEvents, WorkerPool
from kontext_fast.server.settings import ServerSettings
from tests.server.jobs import job
from tests.server.scripted_worker import STEP_S

SCRIPT = (sys.executable, "-m", "tests.server.scripted_worker")
WAIT_S = 60.0
LONG = 40
"""Steps of a job that is still running when a test looks at it."""


@asynccontextmanager
async def pool(command: tuple[str, ...] = SCRIPT, **settings: Any) -> AsyncIterator[WorkerPool]:
    """Ready, with one worker."""
    plans = [WorkerPlan("cpu", "cpu", ("baseline",))]
    running = WorkerPool(
        ServerSettings(presets=("baseline",), steps=2, **settings), plans, on_unusable=_fail, command=command
    )
    await running.start()
    try:
        await until(lambda: running.status().ready)
        yield running
    finally:
        await running.stop()


def _fail(error: KontextError) -> None:
    raise AssertionError(error)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


async def outcome(events: JobEvents) -> list[Event]:
    """All events; raises JobFailed."""
    async with asyncio.timeout(WAIT_S):
        return [event async for event in events]


async def failure(events: JobEvents) -> JobFailed:
    with pytest.raises(JobFailed) as raised:
        await outcome(events)
    return raised.value


def refusal(running: WorkerPool, refused: Job) -> JobFailed:
    with pytest.raises(JobFailed) as raised:
        running.submit(refused)
    return raised.value


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


async def started(running: WorkerPool, begun: Job) -> JobEvents:
    events = running.submit(begun)
    await until(lambda: running.status().running == 1)
    return events


def test_job_tells_its_steps_and_its_images() -> None:
    async def test() -> None:
        async with pool() as running:
            first, *steps, last = await outcome(running.submit(job(steps=3, images=2)))
            assert isinstance(first, Started)
            assert [(step.done, step.total) for step in steps if isinstance(step, StepDone)] == [
                (done, 6) for done in range(1, 7)
            ]
            assert isinstance(last, Finished)
            assert last.seeds == (7, 8)
            assert [picture.size for picture in last.pictures] == [(128, 128)] * 2
            assert last.run_s >= 6 * STEP_S

    run(test)


def test_ten_jobs_at_once_have_ten_results() -> None:
    async def test() -> None:
        async with pool() as running:
            results = await asyncio.gather(*(outcome(running.submit(job(steps=1))) for _ in range(10)))
            assert all(isinstance(events[-1], Finished) for events in results)
            async with asyncio.timeout(30):  # a worker is free soon after its answer is there
                while running.status().running:
                    await asyncio.sleep(0.01)
            assert running.status().waiting == 0

    run(test)


def test_full_queue_refuses_with_an_honest_wait() -> None:
    async def test() -> None:
        async with pool(queue=1) as running:
            first = await started(running, job(steps=LONG))
            second = running.submit(job(steps=1))
            refused = refusal(running, job())
            assert refused.reason == "queue full"
            assert refused.retry_after_s is not None
            assert 0 < refused.retry_after_s <= LONG * STEP_S * 1.5
            await first.aclose()
            assert isinstance((await outcome(second))[-1], Finished)

    run(test)


def test_deadline_that_cannot_be_kept_is_refused_at_once() -> None:
    async def test() -> None:
        async with pool() as running:
            alone = refusal(running, job(steps=LONG, deadline_s=0.1))
            assert (alone.reason, alone.retry_after_s) == ("input", None)
            await started(running, job(steps=LONG))
            behind = refusal(running, job(steps=2, deadline_s=0.5))
            assert behind.reason == "no time"
            assert behind.retry_after_s is not None
            assert 0 < behind.retry_after_s <= LONG * STEP_S * 1.5

    run(test)


def test_deadline_passes_in_the_queue() -> None:
    async def test() -> None:
        async with pool() as running:
            await started(running, job("hang"))
            late = await failure(running.submit(job(steps=1, deadline_s=0.4)))
            assert late.reason == "deadline"
            assert running.status().waiting == 0

    run(test)


def test_deadline_passes_while_running_and_frees_the_worker() -> None:
    async def test() -> None:
        async with pool() as running:
            # The script takes the same time for any size, so that a small one is expected to end sooner than it does.
            slow = job(steps=LONG, size=(64, 64), deadline_s=LONG * STEP_S * 0.6)
            assert (await failure(running.submit(slow))).reason == "deadline"
            assert isinstance((await outcome(running.submit(job(steps=1))))[-1], Finished)
            assert running.status().workers[0].restarts == 0

    run(test)


def test_cancelled_job_frees_the_worker_within_a_step() -> None:
    async def test() -> None:
        async with pool() as running:
            events = await started(running, job(steps=400))
            await anext(events)
            waiting = running.submit(job(steps=1))
            await events.aclose()
            assert (await failure(events)).reason == "cancelled"
            finished = (await outcome(waiting))[-1]
            assert isinstance(finished, Finished)
            assert finished.queue_s < 200 * STEP_S

    run(test)


def test_cancelled_waiting_job_never_runs() -> None:
    async def test() -> None:
        async with pool() as running:
            first = await started(running, job(steps=5))
            never, last = running.submit(job("die")), running.submit(job(steps=1))
            await never.aclose()
            assert isinstance((await outcome(first))[-1], Finished)
            assert isinstance((await outcome(last))[-1], Finished)
            assert running.status().workers[0].restarts == 0

    run(test)


def test_worker_that_dies_is_replaced_and_its_job_answered() -> None:
    async def test() -> None:
        async with pool() as running:
            died, after = running.submit(job("die")), running.submit(job(steps=1))
            assert (await failure(died)).reason == "worker died"
            assert isinstance((await outcome(after))[-1], Finished)
            assert running.status().workers[0].restarts == 1

    run(test)


def test_idle_worker_that_dies_is_replaced() -> None:
    async def test() -> None:
        async with pool() as running:
            process = running._slots[0].process
            assert process is not None
            os.kill(process.pid, signal.SIGKILL)
            await until(lambda: running.status().workers[0].restarts == 1)
            assert isinstance((await outcome(running.submit(job(steps=1))))[-1], Finished)

    run(test)


def test_worker_that_hangs_is_replaced_and_its_job_answered() -> None:
    async def test() -> None:
        # Long enough for the start of the script's process on a busy machine.
        async with pool(stall_s=2.0) as running:
            assert (await failure(running.submit(job("hang")))).reason == "worker stalled"
            assert isinstance((await outcome(running.submit(job(steps=1))))[-1], Finished)

    run(test)


def test_out_of_memory_spoils_no_later_job_and_is_remembered() -> None:
    async def test() -> None:
        async with pool() as running:
            assert (await failure(running.submit(job("out of memory", size=(256, 256))))).reason == "out of memory"
            assert isinstance((await outcome(running.submit(job(steps=1))))[-1], Finished)
            assert refusal(running, job(size=(256, 256))).reason == "too large"

    run(test)


def test_job_that_the_pipeline_refuses_keeps_the_worker() -> None:
    async def test() -> None:
        async with pool() as running:
            refused = await failure(running.submit(job("refuse")))
            assert (refused.reason, str(refused)) == ("input", "The instruction is too long.")
            assert running.status().workers[0].restarts == 0

    run(test)


def test_drain_finishes_what_runs_and_refuses_what_waits() -> None:
    async def test() -> None:
        async with pool() as running:
            first = await started(running, job(steps=8))
            second = running.submit(job())
            results = asyncio.gather(outcome(first), failure(second))
            await running.drain(WAIT_S)
            finished, refused = await results
            assert isinstance(finished[-1], Finished)
            assert refused.reason == "draining"
            assert refused.retry_after_s is not None
            assert refusal(running, job()).reason == "draining"
            assert not running.status().ready

    run(test)


def test_drain_ends_after_its_grace_period() -> None:
    async def test() -> None:
        async with pool() as running:
            events = await started(running, job("hang"))
            begin = asyncio.get_running_loop().time()
            await running.drain(0.2)
            assert asyncio.get_running_loop().time() - begin < 10
            assert (await failure(events)).reason == "draining"

    run(test)


def test_worker_that_cannot_load_is_reported() -> None:
    async def test() -> None:
        errors: list[KontextError] = []
        plans = [WorkerPlan("cpu", "cpu", ("baseline",))]
        command = (sys.executable, "-c", "raise SystemExit(3)")
        running = WorkerPool(ServerSettings(), plans, on_unusable=errors.append, command=command)
        await running.start()
        await until(lambda: bool(errors))
        await running.stop()
        assert "ended with code 3" in str(errors[0])

    run(test)


def test_wait_counts_exchanges_of_loras() -> None:
    async def test() -> None:
        async with pool(loras=("ink=ink.safetensors",)) as running:
            await started(running, job(steps=LONG))
            before = running.status().expected_wait_s
            running.submit(job(steps=1, lora="ink"))
            after = running.status().expected_wait_s
            assert before is not None
            assert after is not None
            # The script says 0.2 s for an exchange, and a step takes 0.05.
            assert after - before > 0.2

    run(test)
