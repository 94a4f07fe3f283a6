"""Jobs that replicas of a Ray cluster run, for the app of one ingress replica."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any, Literal

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException

from kontext_fast.server.admission import UNKNOWN_WAIT_S
from kontext_fast.server.jobs import Event, Finished, Job, JobFailed, ServiceFacts, ServiceStatus, Started
from kontext_fast.server.settings import ServerSettings

_ASK_AGAIN_S = 0.5
"""While no replica has loaded, or none that has the preset of a job."""
_ROLLING_S = 120.0
"""How long replicas may lack a preset that this ingress has, while one version of the server replaces another."""

Failure = tuple[str, Any, float | None]
"""A `JobFailed` as it crosses processes: message, reason, seconds after which to try again."""


class RayBackend:
    """Implements `backend.Backend` over the handle of the deployment `ray.Editor`."""

    def __init__(self, handle: Any, settings: ServerSettings) -> None:
        """Of `settings`, `queue` jobs of this ingress may wait for a replica."""
        self._handle = handle
        self._settings = settings
        self._facts: ServiceFacts | None = None
        self._draining = False
        self.jobs: set[RayEvents] = set()
        """That have not ended."""
        self.last_run_s = UNKNOWN_WAIT_S

    async def start(self) -> None:
        """Return once a replica has what the settings name: before that, this ingress is to get no request."""
        while self._facts is None:
            try:
                facts: ServiceFacts | None = await self._handle.facts.remote()
            except (RayError, RayServeException):
                facts = None
            if facts is not None and tuple(preset.name for preset in facts.presets) == self._settings.presets:
                self._facts = facts
            else:
                # None has loaded yet, or this one belongs to the version that is being replaced.
                await asyncio.sleep(_ASK_AGAIN_S)

    def facts(self) -> ServiceFacts | None:
        return self._facts

    def status(self) -> ServiceStatus:
        """Of this ingress; replicas and their restarts are in `serve status`."""
        waiting = sum(not job.started for job in self.jobs)
        return ServiceStatus(
            ready=self._facts is not None and not self._draining,
            draining=self._draining,
            waiting=waiting,
            running=len(self.jobs) - waiting,
            expected_wait_s=None,
        )

    def submit(self, job: Job) -> RayEvents:
        """Send `job` to a replica that holds its LoRA, if there is one. Raises JobFailed where too many wait."""
        if self._draining:
            raise JobFailed("The server is shutting down; send the request again.", "draining", retry_after_s=5.0)
        if self._facts is None:
            raise JobFailed("The model is still loading; try again soon.", "not ready", retry_after_s=UNKNOWN_WAIT_S)
        if self.status().waiting >= self._settings.queue:
            raise self.queue_full()
        events = RayEvents(self, self._handle, job)
        self.jobs.add(events)
        return events

    def queue_full(self) -> JobFailed:
        return JobFailed(
            "The queue is full; try again after the time that Retry-After says.",
            "queue full",
            retry_after_s=self.last_run_s,
        )

    async def drain(self, grace_s: float) -> None:
        """Accept nothing more, and return when what was accepted has ended, in `grace_s` at most."""
        self._draining = True
        end = time.monotonic() + grace_s
        while self.jobs and time.monotonic() < end:
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Replicas are Serve's to end."""


class RayEvents:
    """Implements `jobs.EventStream`. A job whose replica is lost before it did anything is sent once more."""

    def __init__(self, backend: RayBackend, handle: Any, job: Job) -> None:
        self._backend = backend
        self._handle = handle.options(stream=True, multiplexed_model_id=job.lora or "")
        self._job = job
        self._since = time.monotonic()
        self._queue_s = 0.0
        self._again = True
        self._response = self._handle.run.remote(job)
        self.started = False
        self._state: Literal["open", "ended"] = "open"

    def __aiter__(self) -> RayEvents:
        return self

    async def __anext__(self) -> Event:
        if self._state == "ended":
            raise StopAsyncIteration
        try:
            event = await self._next()
        except JobFailed:
            self._end()
            raise
        if isinstance(event, Started):
            self.started, self._queue_s = True, time.monotonic() - self._since
            return Started(self._queue_s)
        self._again = False
        if isinstance(event, Finished):
            self._backend.last_run_s = event.run_s
            self._end()
            return replace(event, queue_s=self._queue_s)
        return event

    async def aclose(self) -> None:
        """Cancel the job unless it has ended; awaits nothing."""
        if self._state == "open":
            self._response.cancel()
            self._end()

    def _end(self) -> None:
        self._state = "ended"
        self._backend.jobs.discard(self)

    async def _next(self) -> Event:
        left = self._since + self._job.deadline_s - time.monotonic()
        try:
            event = await asyncio.wait_for(anext(self._response), max(0.0, left))
        except TimeoutError:
            self._response.cancel()
            raise JobFailed(
                f"The edit was not done within its deadline of {self._job.deadline_s:g} s.", "deadline"
            ) from None
        except BackPressureError:
            raise self._backend.queue_full() from None
        except (RayError, RayServeException, StopAsyncIteration):
            # The replica was lost.
            if not self._again:
                raise JobFailed("The worker died; send the request again.", "worker died") from None
            self._again = False
            self._response = self._handle.run.remote(self._job)
            event = await self._next()
            # What the client was told of the first attempt holds for the second one.
            return await self._next() if isinstance(event, Started) and self.started else event
        if event is None:
            if time.monotonic() - self._since > _ROLLING_S:
                raise JobFailed(
                    f"The preset {self._job.preset} is being replaced by others; ask /v1/models for them.",
                    "not ready",
                    retry_after_s=5.0,
                )
            await asyncio.sleep(_ASK_AGAIN_S)
            self._response = self._handle.run.remote(self._job)
            return await self._next()
        if isinstance(event, tuple):
            message, reason, retry_after_s = event
            raise JobFailed(message, reason, retry_after_s=retry_after_s)
        return event  # type: ignore[no-any-return]
