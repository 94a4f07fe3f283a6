"""A request on its way through queue and worker, and what it is told meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from kontext_fast.errors import KontextError

if TYPE_CHECKING:
    from PIL.Image import Image

    from kontext_fast.pipeline.edit import EditRequest
    from kontext_fast.pipeline.sizes import SizePlan
    from kontext_fast.records.schema import Checkpoint, StepKind
    from kontext_fast.server.protocol import PresetMessage


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request as it is queued and run."""

    id: str
    request: EditRequest
    """Its seed is drawn; `batch` is the number of images, of which each has the next seed."""
    size: SizePlan
    """What will run."""
    preset: str
    lora: str | None = None
    previews: int = 0
    """Images on the way to each result."""
    deadline_s: float
    """Longest time from submission to the result."""

    @property
    def images(self) -> int:
        return self.request.batch


@dataclass(frozen=True)
class Started:
    """It left the queue."""

    queue_s: float


@dataclass(frozen=True)
class StepDone:
    """`done` of the `total` steps of all its images have ended."""

    done: int
    total: int


@dataclass(frozen=True)
class Preview:
    """An estimate of the image with number `image`, both numbers from 0."""

    image: int
    index: int
    picture: Image


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The last event of a job that succeeded."""

    pictures: tuple[Image, ...]
    seeds: tuple[int, ...]
    queue_s: float
    run_s: float
    """In the worker: of the job alone, or of the batch that it was part of."""
    preview_s: float
    """What previews added to `run_s`."""
    swap_s: float
    """What exchanging LoRAs added to `run_s`."""
    step_kinds: tuple[StepKind, ...]
    """Per step that ran; skipped where every image skipped it."""
    cautions: tuple[str, ...] = ()
    """What must be said beside the images; see `pipeline.edit.EditResult`."""
    batch: int = 1
    """Jobs that ran together."""


Event = Started | StepDone | Preview | Finished


class EventStream(Protocol):
    """What a job is told, until it has a result."""

    def __aiter__(self) -> EventStream: ...

    async def __anext__(self) -> Event:
        """Raises JobFailed where there is no result."""

    async def aclose(self) -> None:
        """Cancel the job unless it has ended. Awaits nothing, since it is also called in a task that is cancelled."""


class JobFailed(KontextError):
    """A job has no result. The message is for the client."""

    def __init__(self, message: str, reason: Reason, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s


Reason = Literal[
    "input",
    "too large",
    "queue full",
    "no time",
    "deadline",
    "draining",
    "not ready",
    "out of memory",
    "worker died",
    "worker stalled",
    "refused",
    "internal",
    "cancelled",
]
"""input, too large: the request cannot run here; queue full, no time: it was not accepted, since there is no place, or
its deadline would pass; deadline: it passed; refused: this machine cannot do it; cancelled: the client left."""


@dataclass(frozen=True)
class ServiceFacts:
    """What was loaded, the same for all workers."""

    checkpoint: Checkpoint
    native: int
    """Side in pixels of the square that it was trained at."""
    text_tokens: int
    """That every instruction is padded to."""
    presets: tuple[PresetMessage, ...]
    """Those that requests may name; the first one is the default."""
    loras: tuple[str, ...]
    environment: Mapping[str, Any]
    """Facts of the machine, as a record stores them."""


@dataclass(frozen=True)
class WorkerStatus:
    """One worker as health and metrics show it."""

    name: str
    """`cuda:0`, with the preset where several workers share a card."""
    state: Literal["starting", "ready", "busy", "restarting", "stopped"]
    restarts: int
    busy_s: float = 0.0
    """Time in which it ran jobs, since the server started."""
    device_memory_bytes: int | None = None
    host_memory_bytes: int | None = None


@dataclass(frozen=True)
class ServiceStatus:
    """How the service is doing now."""

    ready: bool
    draining: bool
    waiting: int
    running: int
    expected_wait_s: float | None
    """Of a request that comes now; None before anything was timed."""
    workers: tuple[WorkerStatus, ...] = field(default=())
