"""The jobs that wait, and which of them runs next. Knows no worker and no clock: times are given to it.

First come, first served, with two exceptions. A job of the LoRA that a worker holds may go first, since exchanging it
takes time, but no job is passed over more than a few times. And jobs that can run as one batch run together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from kontext_fast.server.jobs import Job

MOST_OVERTAKINGS = 8


@dataclass(eq=False)
class Waiting:
    """A job in the queue."""

    job: Job
    since_s: float
    overtaken: int = 0

    @property
    def deadline_s(self) -> float:
        """When the job has to have its result, on the clock of `since_s`."""
        return self.since_s + self.job.deadline_s


class JobQueue:
    """At most `size` jobs, in the order in which they came."""

    def __init__(self, size: int, *, batch: int = 1, batch_pixels: int = 0) -> None:
        """`batch` images of at most `batch_pixels` pixels each may run together."""
        self._size = size
        self._batch = batch
        self._batch_pixels = batch_pixels
        self._waiting: list[Waiting] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(tuple(self._waiting))

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= self._size

    def add(self, waiting: Waiting) -> None:
        """Whoever adds has asked `is_full`."""
        self._waiting.append(waiting)

    def remove(self, waiting: Waiting) -> bool:
        """Whether it still waited."""
        if waiting not in self._waiting:
            return False
        self._waiting.remove(waiting)
        return True

    def has_any(self, presets: Collection[str]) -> bool:
        return any(waiting.job.preset in presets for waiting in self._waiting)

    def take(self, presets: Collection[str], lora: str | None) -> list[Waiting]:
        """The jobs that a worker of `presets` that holds `lora` runs next, removed; empty if none of its waits."""
        candidates = [waiting for waiting in self._waiting if waiting.job.preset in presets]
        if not candidates:
            return []
        first = candidates[0]
        if first.job.lora != lora and first.overtaken < MOST_OVERTAKINGS:
            first = next((waiting for waiting in candidates if waiting.job.lora == lora), first)
        for passed in candidates[: candidates.index(first)]:
            passed.overtaken += 1
        taken = [first, *self._companions(first, candidates)]
        for waiting in taken:
            self._waiting.remove(waiting)
        return taken

    def _companions(self, first: Waiting, candidates: list[Waiting]) -> Iterator[Waiting]:
        """Others that can be one batch with `first`."""
        size = first.job.size
        if self._batch == 1 or size.width * size.height > self._batch_pixels:
            return
        images, kind = first.job.images, batch_kind(first.job)
        for waiting in candidates:
            if waiting is not first and batch_kind(waiting.job) == kind and images + waiting.job.images <= self._batch:
                images += waiting.job.images
                yield waiting


def batch_kind(job: Job) -> tuple[object, ...]:
    """What jobs of one batch have in common."""
    request, size = job.request, job.size
    return (
        job.preset,
        job.lora,
        job.previews,
        size.size,
        size.reference_size,
        request.steps,
        request.guidance,
        request.true_cfg,
        request.image is None,
        request.negative is None,
    )
