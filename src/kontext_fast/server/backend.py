"""What the app needs of whatever runs its jobs.

`pool.WorkerPool` is the one of a single machine. Another scheduler implements these five methods and runs
`worker.ImageWorker` where it has a card.
"""

from __future__ import annotations

from typing import Protocol

from kontext_fast.server.jobs import EventStream, Job, ServiceFacts, ServiceStatus


class Backend(Protocol):
    """Runs jobs; used on one event loop."""

    async def start(self) -> None:
        """Begin to load; returns before anything is ready."""

    def facts(self) -> ServiceFacts | None:
        """What is served; None until it was loaded once."""

    def status(self) -> ServiceStatus:
        """Answers at once."""

    def submit(self, job: Job) -> EventStream:
        """The events of `job`, the last of which is Finished; closing them cancels the job.

        Raises JobFailed at once where the job is not accepted; the stream raises it where the job has no result.
        """

    async def drain(self, grace_s: float) -> None:
        """Accept nothing more, refuse what waits, and return when what runs has ended, in `grace_s` at most."""

    async def stop(self) -> None:
        """End all workers."""
