"""Which jobs are accepted: those that are expected to end before their deadline, by how long earlier ones took."""

from __future__ import annotations

import time
from collections.abc import Sequence

from kontext_fast.server.estimate import NOTHING, Estimate, JobKind, ServiceTimes
from kontext_fast.server.jobs import Job, JobFailed
from kontext_fast.server.protocol import JobDone, Ready
from kontext_fast.server.queue import JobQueue
from kontext_fast.server.slots import Slot

UNKNOWN_WAIT_S = 10.0
"""What a client is told to wait where nothing was timed yet."""
_MEMORY_LIMIT_S = 600.0
"""How long a size that was too large for the memory is remembered."""


class Admission:
    """Learns how long jobs take, and refuses those that would not be done in time."""

    def __init__(self, queue: JobQueue, slots: Sequence[Slot]) -> None:
        self._queue = queue
        self._slots = slots
        self._times = ServiceTimes()
        self._swap_s = 0.0
        """Of an exchange of LoRAs."""
        self._too_large: tuple[int, float] | None = None
        """Tokens of a job that ran out of memory, and when."""

    def worker_loaded(self, ready: Ready) -> None:
        """Its warm-up was timed."""
        tokens = ready.text_tokens + 2 * (ready.native // 16) ** 2
        for timing in ready.timings:
            self._times.add(JobKind(timing.preset, timing.steps, 1, tokens), timing.seconds)
        self._swap_s = ready.swap_s or 0.0

    def job_done(self, job: Job, report: JobDone, images: int) -> None:
        """`images` were made in the time of the report, those of other jobs of the batch included."""
        self._times.add(JobKind.of(job), (report.run_s - report.swap_s) / images)
        if report.swap_s:
            self._swap_s = report.swap_s

    def out_of_memory(self, job: Job) -> None:
        """Refuse jobs of its size for a while."""
        self._too_large = (_tokens(job), time.monotonic())

    def check(self, job: Job, now: float) -> None:
        """Raises JobFailed with the time after which it may be tried again."""
        if self._too_large is not None:
            tokens, since = self._too_large
            if now - since < _MEMORY_LIMIT_S and _tokens(job) >= tokens:
                raise JobFailed(
                    f"A request of {job.size.width}x{job.size.height} ran out of memory here a short while ago; "
                    "ask for a smaller size.",
                    "too large",
                )
        wait, own = self.expected_wait(now, job), self._times.of(job)
        if self._queue.is_full:
            raise JobFailed(
                "The queue is full; try again after the time that Retry-After says.",
                "queue full",
                retry_after_s=self._next_place(now),
            )
        if wait is None or own is None:
            return
        late = wait.most + own.most - job.deadline_s
        if late > 0:
            if own.most > job.deadline_s:
                raise JobFailed(
                    f"This edit takes up to {own.most:.1f} s here, and its deadline is {job.deadline_s:g} s; "
                    "give it more time or ask for fewer steps, images or pixels.",
                    "input",
                )
            raise JobFailed(
                f"This edit would not be done within its deadline of {job.deadline_s:g} s; try again after the time "
                "that Retry-After says.",
                "no time",
                retry_after_s=late,
            )

    def expected_wait(self, now: float, job: Job | None = None) -> Estimate | None:
        """How long a job that comes now waits, exchanges of LoRAs included; None before anything was timed.

        `job` itself may need one more of them.
        """
        usable = [slot for slot in self._slots if slot.ready is not None]
        if not usable:
            return None
        wanted = {waiting.job.lora for waiting in self._queue} | ({job.lora} if job else set())
        swaps = self._swap_s * len(wanted - {slot.lora for slot in usable})
        total = Estimate(swaps, swaps)
        for waiting in self._queue:
            total += self._times.of(waiting.job) or NOTHING
        for slot in usable:
            total += slot.time_left(self._times, now)
        cards = len({slot.plan.device for slot in usable})
        return total * (1 / cards)

    def _next_place(self, now: float) -> float:
        """When a job that waits will have left the queue."""
        soonest = [slot.time_left(self._times, now).mean for slot in self._slots if slot.ready is not None]
        return min(soonest, default=UNKNOWN_WAIT_S)


def _tokens(job: Job) -> int:
    """What the memory of a job grows with: its images run one at a time."""
    return job.size.text_tokens + job.size.image_tokens + job.size.reference_tokens
