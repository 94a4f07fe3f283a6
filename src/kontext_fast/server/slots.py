"""The workers of a pool and the jobs that they run, as the pool sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from kontext_fast.server.estimate import NOTHING, Estimate, ServiceTimes
from kontext_fast.server.jobs import Event, Finished, Job, JobFailed, WorkerStatus
from kontext_fast.server.placement import WorkerPlan
from kontext_fast.server.protocol import Idle, Ready
from kontext_fast.server.queue import Waiting
from kontext_fast.server.worker_process import WorkerProcess


class JobEvents:
    """The events of one accepted job; closing it cancels the job."""

    def __init__(self, waiting: Waiting, cancel: Callable[[JobEvents], None]) -> None:
        self.waiting = waiting
        self._cancel = cancel
        self._events: asyncio.Queue[Event | JobFailed] = asyncio.Queue()
        self.ended = False

    @property
    def job(self) -> Job:
        return self.waiting.job

    def __aiter__(self) -> JobEvents:
        return self

    async def __anext__(self) -> Event:
        if self.ended and self._events.empty():
            raise StopAsyncIteration
        event = await self._events.get()
        if isinstance(event, JobFailed):
            raise event
        return event

    async def aclose(self) -> None:
        """Cancel the job unless it has ended; awaits nothing."""
        self._cancel(self)

    def tell(self, event: Event | JobFailed) -> None:
        """Nothing is told after the end."""
        if self.ended:
            return
        self.ended = isinstance(event, Finished | JobFailed)
        self._events.put_nowait(event)


@dataclass(eq=False)
class Slot:
    """A worker, whichever process it is at the moment."""

    plan: WorkerPlan
    card: asyncio.Lock
    state: Literal["starting", "ready", "busy", "restarting", "stopped"] = "starting"
    restarts: int = 0
    process: WorkerProcess | None = None
    ready: Ready | None = None
    """Of its first start."""
    started_at: float = 0.0
    memory: Idle | None = None
    busy_s: float = 0.0
    busy_since: float | None = None
    lora: str | None = None
    running: list[JobEvents] = field(default_factory=list)
    share_done: dict[str, float] = field(default_factory=dict)
    """Of the steps of each running job."""

    def status(self, now: float) -> WorkerStatus:
        return WorkerStatus(
            name=self.plan.name,
            state=self.state,
            restarts=self.restarts,
            busy_s=self.busy_s + (0.0 if self.busy_since is None else now - self.busy_since),
            device_memory_bytes=self.memory.device_memory_bytes if self.memory else None,
            host_memory_bytes=self.memory.host_memory_bytes if self.memory else None,
        )

    def time_left(self, times: ServiceTimes, now: float) -> Estimate:
        """The time until it has ended what it does now."""
        if self.state == "restarting" and self.ready is not None:
            left = max(0.0, self.ready.load_s - (now - self.started_at))
            return Estimate(left, 1.5 * left)
        total = NOTHING
        for events in self.running:
            estimate = times.of(events.job) or NOTHING
            total += estimate * (1 - self.share_done.get(events.job.id, 0.0))
        return total
