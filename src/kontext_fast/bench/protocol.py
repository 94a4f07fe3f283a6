"""The messages between the parent of a benchmark and a worker.

The parent writes one line, a `Job`, to the worker's stdin and keeps stdin open; its end tells the worker that the
parent has died. The worker writes one `Message` per line to a pipe of its own, so that nothing a library prints can be
mistaken for a message, and what it reported before a crash has already reached the parent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from kontext_fast.bench.suites import Suite
from kontext_fast.records.schema import AppliedOptimization, Cell, Checkpoint, Measurement, StoredItem


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Job(_Line):
    """One run: load `checkpoint`, apply `preset`, measure `cells` as `suite` says."""

    checkpoint: str
    preset: str
    suite: Suite
    dataset: str | None = None
    """Path of the user's own items; None for those of the shapes world."""
    loras: tuple[tuple[str, float], ...] = ()
    """Paths and strengths of LoRAs to merge before the preset is applied."""
    cells: tuple[Cell, ...]
    device: str | None
    """None chooses the best device of this machine."""
    keep_images: bool
    """Store the output of the first measured call of each item."""
    folder: str
    """The result folder whose store receives the images."""


class Started(_Line):
    event: Literal["started"] = "started"
    environment: dict[str, Any]


class Planned(_Line):
    event: Literal["planned"] = "planned"
    plan: tuple[AppliedOptimization, ...]
    labels: tuple[str, ...]


class Loaded(_Line):
    event: Literal["loaded"] = "loaded"
    checkpoint: Checkpoint
    load_s: float


class Applied(_Line):
    event: Literal["applied"] = "applied"
    apply_s: float


class Measured(_Line):
    event: Literal["measured"] = "measured"
    measurement: Measurement
    items: tuple[StoredItem, ...]


class Progress(_Line):
    event: Literal["progress"] = "progress"
    phase: Literal["loading", "applying", "first call", "warm-up", "measuring"]
    call: int = 0
    """1-based; 0 outside calls."""
    calls: int = 0
    step: int = 0
    steps: int = 0


class SuiteAborted(_Line):
    """No run of this suite can succeed on this machine, whatever the preset, so the suite stops."""

    event: Literal["suite aborted"] = "suite aborted"
    fault: Literal["input", "machine"]
    reason: str


class Ended(_Line):
    """The last message; a worker that ends without it has crashed."""

    event: Literal["ended"] = "ended"
    status: Literal["ok", "refused", "oom", "interrupted"]
    reason: str | None = None


Message = Annotated[
    Started | Planned | Loaded | Applied | Measured | Progress | SuiteAborted | Ended, Field(discriminator="event")
]

_messages: TypeAdapter[Message] = TypeAdapter(Message)


def read_message(line: bytes) -> Message:
    """Raises pydantic.ValidationError if `line` is not a message."""
    return _messages.validate_json(line)
