"""Workers of one machine behind one queue: what is accepted, who runs it, and what happens when a worker fails.

A worker that dies, hangs or runs out of memory is replaced, and its jobs are answered. The card of a worker runs one
job at a time, whichever of its workers that is for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from kontext_fast.errors import InvalidInput, KontextError, Refused
from kontext_fast.server.admission import UNKNOWN_WAIT_S, Admission
from kontext_fast.server.jobs import (
    Finished,
    Job,
    JobFailed,
    Preview,
    ServiceFacts,
    ServiceStatus,
    Started,
    StepDone,
)
from kontext_fast.server.placement import WorkerPlan
from kontext_fast.server.protocol import (
    Cancel,
    Idle,
    JobDone,
    JobError,
    JobMessage,
    JobPreview,
    JobStep,
    Ready,
    Report,
    Run,
    Setup,
    Unusable,
    picture,
    pixels,
)
from kontext_fast.server.queue import JobQueue, Waiting
from kontext_fast.server.settings import ServerSettings
from kontext_fast.server.slots import JobEvents, Slot
from kontext_fast.server.worker_process import COMMAND, WorkerDied, WorkerProcess

_log = logging.getLogger("kontext_fast.server")

_LONGEST_PAUSE_S = 60.0
"""Between attempts to start a worker that does not start."""
_EXPIRY_S = 0.05
"""How often deadlines of waiting jobs are looked at."""


class WorkerPool:
    """Implements `backend.Backend` with processes of this machine."""

    def __init__(
        self,
        settings: ServerSettings,
        plans: Sequence[WorkerPlan],
        *,
        on_unusable: Callable[[KontextError], None],
        command: Sequence[str] = COMMAND,
    ) -> None:
        """`on_unusable` is called when a worker cannot load what it never loaded before."""
        self._settings = settings
        self._on_unusable = on_unusable
        self._command = command
        self._queue = JobQueue(settings.queue, batch=settings.batch, batch_pixels=settings.batch_pixels)
        self._accepted: dict[Waiting, JobEvents] = {}
        cards: dict[str, asyncio.Lock] = {plan.device: asyncio.Lock() for plan in plans}
        self._slots = [Slot(plan, cards[plan.device]) for plan in plans]
        self._admission = Admission(self._queue, self._slots)
        self._changed = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self._draining = False
        self._facts: ServiceFacts | None = None
        self._background: set[asyncio.Task[None]] = set()
        """Held here, since the event loop holds tasks weakly."""

    # What the app calls

    async def start(self) -> None:
        """Start all workers; they load side by side."""
        self._tasks = [asyncio.create_task(self._keep_alive(slot)) for slot in self._slots]
        self._tasks.append(asyncio.create_task(self._expire()))

    def facts(self) -> ServiceFacts | None:
        return self._facts

    def status(self) -> ServiceStatus:
        now = time.monotonic()
        return ServiceStatus(
            ready=self._facts is not None
            and not self._draining
            and any(slot.state in ("ready", "busy") for slot in self._slots),
            draining=self._draining,
            waiting=len(self._queue),
            running=sum(len(slot.running) for slot in self._slots),
            expected_wait_s=None if (wait := self._admission.expected_wait(now)) is None else wait.mean,
            workers=tuple(slot.status(now) for slot in self._slots),
        )

    def submit(self, job: Job) -> JobEvents:
        """Accept `job`, or raise JobFailed: it must be expected to end before its deadline."""
        now = time.monotonic()
        if self._draining:
            raise _shutting_down()
        if self._facts is None:
            raise JobFailed("The model is still loading; try again soon.", "not ready", retry_after_s=UNKNOWN_WAIT_S)
        self._admission.check(job, now)
        waiting = Waiting(job, now)
        events = JobEvents(waiting, self.cancel)
        self._queue.add(waiting)
        self._accepted[waiting] = events
        self._notify()
        return events

    def cancel(self, events: JobEvents) -> None:
        """Take the job out of the queue, or have its worker stop at the end of the running step."""
        if events.ended:
            return
        events.tell(JobFailed("The request was cancelled.", "cancelled"))
        if self._queue.remove(events.waiting):
            self._accepted.pop(events.waiting, None)
            self._notify()
            return
        for slot in self._slots:
            if events in slot.running and slot.process is not None:
                self._in_background(slot.process.send(Cancel(job=events.job.id)))

    async def drain(self, grace_s: float) -> None:
        """Accept nothing more, refuse what waits, and wait for what runs; it is refused, too, after `grace_s`."""
        self._draining = True
        for waiting in self._queue:
            self._queue.remove(waiting)
            self._accepted.pop(waiting).tell(_shutting_down())
        self._notify()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s), self._changed:
                await self._changed.wait_for(lambda: not any(slot.running for slot in self._slots))
        for slot in self._slots:
            for events in slot.running:
                events.tell(_shutting_down())

    async def stop(self) -> None:
        """End all workers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for slot in self._slots:
            if slot.process is not None:
                await slot.process.close()
            slot.state = "stopped"

    # Who runs it

    async def _keep_alive(self, slot: Slot) -> None:
        """Run processes for `slot` one after another, for as long as the server runs."""
        pause = 0.0
        while True:
            await asyncio.sleep(pause)
            try:
                ready = await self._start(slot)
            except KontextError as error:
                if slot.ready is None:
                    self._on_unusable(error)
                    return
                pause = min(_LONGEST_PAUSE_S, 2 * pause + 1)
                _log.error("worker %s did not start again: %s Next attempt in %.0f s.", slot.plan.name, error, pause)
                continue
            pause = 0.0
            process = slot.process
            assert process is not None
            self._learn(slot, ready)
            try:
                await self._work(slot, process)
            except WorkerDied as death:
                _log.error("worker %s %s and is replaced", slot.plan.name, death)
            await process.close()
            self._end_process(slot)

    async def _start(self, slot: Slot) -> Ready:
        """Raises what the worker says, or Refused where it says nothing."""
        settings = self._settings
        memory = settings.worker_memory_gib
        setup = Setup(
            checkpoint=settings.checkpoint,
            presets=slot.plan.presets,
            loras=settings.loras,
            device=slot.plan.device,
            threads=settings.threads,
            memory_bytes=None if memory is None else int(memory * 2**30),
            steps=settings.steps,
            guidance=settings.guidance,
            batch=settings.batch,
        )
        slot.started_at = time.monotonic()
        slot.process = process = await WorkerProcess.start(setup, self._command)
        try:
            report, _ = await process.receive()
        except WorkerDied as death:
            raise Refused(f"The worker {slot.plan.name} {death} while loading; its log says why.") from death
        if isinstance(report, Unusable):
            await process.close()
            raise (
                InvalidInput(report.message) if report.exit_code == InvalidInput.exit_code else Refused(report.message)
            )
        if not isinstance(report, Ready):
            await process.close()
            raise Refused(f"The worker {slot.plan.name} does not speak this version's protocol; install it again.")
        return report

    def _learn(self, slot: Slot, ready: Ready) -> None:
        """What a worker that has loaded says about itself."""
        self._admission.worker_loaded(ready)
        slot.ready = slot.ready or ready
        if self._facts is None and all(other.ready is not None for other in self._slots):
            presets = {preset.name: preset for other in self._slots if other.ready for preset in other.ready.presets}
            self._facts = ServiceFacts(
                checkpoint=ready.checkpoint,
                native=ready.native,
                text_tokens=ready.text_tokens,
                presets=tuple(presets[name] for name in self._settings.presets),
                loras=tuple(lora.name for lora in self._settings.loras),
                environment=ready.environment,
            )

    async def _work(self, slot: Slot, process: WorkerProcess) -> None:
        """Run jobs until the process ends, and then raise WorkerDied."""
        await self._until_idle(slot, process)
        while True:
            slot.state = "ready"
            self._notify()
            await self._wait_for_job(slot, process)
            async with slot.card:
                taken = self._queue.take(slot.plan.presets, slot.lora)
                if taken:
                    await self._run(slot, process, [self._accepted.pop(waiting) for waiting in taken])

    async def _wait_for_job(self, slot: Slot, process: WorkerProcess) -> None:
        """Return when there may be a job for `slot`. Raises WorkerDied if the process ends first."""

        async def job() -> None:
            async with self._changed:
                await self._changed.wait_for(lambda: self._queue.has_any(slot.plan.presets))

        tasks = [asyncio.create_task(job()), asyncio.create_task(process.died())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[1].done():
                tasks[1].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, slot: Slot, process: WorkerProcess, jobs: list[JobEvents]) -> None:
        start = time.monotonic()
        slot.state, slot.busy_since, slot.running = "busy", start, jobs
        slot.lora = jobs[0].job.lora
        for events in jobs:
            events.tell(Started(start - events.waiting.since_s))
        pictures = [events.job.request.image for events in jobs]
        order = Run(jobs=tuple(_job_message(events.job) for events in jobs))
        try:
            async with asyncio.timeout(self._settings.stall_s):
                await process.send(order, tuple(pixels(image) for image in pictures if image is not None))
            await self._until_idle(slot, process)
        except TimeoutError:
            raise await self._stalled(slot, process) from None
        except WorkerDied as death:
            for events in jobs:
                events.tell(JobFailed(f"The worker {death}; send the request again.", "worker died"))
            raise
        finally:
            slot.busy_s += time.monotonic() - start
            slot.busy_since, slot.running = None, []
            slot.share_done.clear()
            self._notify()

    async def _until_idle(self, slot: Slot, process: WorkerProcess) -> None:
        """Pass on what the worker reports until it waits for jobs. Raises WorkerDied."""
        heard = time.monotonic()
        while True:
            now = time.monotonic()
            running = [events for events in slot.running if not events.ended]
            for events in running:
                if now >= events.waiting.deadline_s:
                    events.tell(_deadline_passed(events.job))
                    self._in_background(process.send(Cancel(job=events.job.id)))
            until = min([heard + self._settings.stall_s, *(events.waiting.deadline_s for events in running)])
            try:
                async with asyncio.timeout(max(0.0, until - now)):
                    report, blobs = await process.receive()
            except TimeoutError:
                if time.monotonic() >= heard + self._settings.stall_s:
                    raise await self._stalled(slot, process) from None
                continue
            heard = time.monotonic()
            if isinstance(report, Idle):
                slot.memory = report
                return
            self._pass_on(slot, report, blobs)

    async def _stalled(self, slot: Slot, process: WorkerProcess) -> WorkerDied:
        await process.write_stacks()
        await process.kill()
        for events in slot.running:
            events.tell(JobFailed("The worker stopped responding; send the request again.", "worker stalled"))
        return WorkerDied(f"reported nothing for {self._settings.stall_s:g} s")

    def _pass_on(self, slot: Slot, report: Report, blobs: list[bytes]) -> None:
        if not isinstance(report, JobStep | JobPreview | JobDone | JobError):
            return
        events = next((events for events in slot.running if events.job.id == report.job), None)
        if events is None:
            return
        job = events.job
        if isinstance(report, JobStep):
            slot.share_done[job.id] = report.done / report.total
            events.tell(StepDone(report.done, report.total))
        elif isinstance(report, JobPreview):
            events.tell(Preview(report.image, report.index, picture(report.size, blobs[0])))
        elif isinstance(report, JobDone):
            self._admission.job_done(job, report, sum(other.job.images for other in slot.running))
            events.tell(_finished(events, report, blobs, slot))
        else:
            if report.reason == "out of memory":
                self._admission.out_of_memory(job)
            events.tell(JobFailed(report.message, report.reason))

    def _end_process(self, slot: Slot) -> None:
        slot.process, slot.lora, slot.memory = None, None, None
        slot.state, slot.restarts = "restarting", slot.restarts + 1
        self._notify()

    # The queue

    async def _expire(self) -> None:
        """Answer jobs whose deadline passes while they wait."""
        while True:
            await asyncio.sleep(_EXPIRY_S)
            now = time.monotonic()
            for waiting in self._queue:
                if now >= waiting.deadline_s and self._queue.remove(waiting):
                    self._accepted.pop(waiting).tell(_deadline_passed(waiting.job))
                    self._notify()

    def _notify(self) -> None:
        """Wake whoever waits for a change of queue or workers."""
        self._in_background(self._wake())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _shutting_down() -> JobFailed:
    return JobFailed("The server is shutting down; send the request again.", "draining", retry_after_s=5.0)


def _deadline_passed(job: Job) -> JobFailed:
    return JobFailed(f"The edit was not done within its deadline of {job.deadline_s:g} s.", "deadline")


def _job_message(job: Job) -> JobMessage:
    request = job.request
    assert request.seed is not None
    return JobMessage(
        id=job.id,
        instruction=request.instruction,
        image_size=None if request.image is None else request.image.size,
        steps=request.steps,
        guidance=request.guidance,
        seed=request.seed,
        negative=request.negative,
        true_cfg=request.true_cfg,
        size=request.size,
        images=request.batch,
        preset=job.preset,
        lora=job.lora,
        previews=job.previews,
    )


def _finished(events: JobEvents, report: JobDone, blobs: list[bytes], slot: Slot) -> Finished:
    assert slot.busy_since is not None
    return Finished(
        pictures=tuple(picture(report.size, blob) for blob in blobs),
        seeds=events.job.request.seeds(),
        queue_s=slot.busy_since - events.waiting.since_s,
        run_s=report.run_s,
        preview_s=report.preview_s,
        swap_s=report.swap_s,
        step_kinds=report.step_kinds,
        cautions=report.cautions,
        batch=len(slot.running),
    )
