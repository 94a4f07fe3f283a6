"""The messages between the server and a worker process.

A frame is a line of JSON, `{"message": ..., "blobs": [lengths]}`, and after it that many bytes per blob: the pixels of
an image, 8-bit RGB in rows. The server writes Setup first and keeps the worker's stdin open; its end tells the worker
that the server has died. The worker writes to a pipe of its own, so that nothing a library prints is taken for a
message.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from kontext_fast.records.schema import AppliedOptimization, Checkpoint, StepKind
from kontext_fast.server.settings import LoraFile

if TYPE_CHECKING:
    from PIL.Image import Image


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Setup(_Message):
    """What a worker loads."""

    kind: Literal["setup"] = "setup"
    checkpoint: str
    presets: tuple[str, ...]
    loras: tuple[LoraFile, ...]
    device: str | None
    threads: int | None
    memory_bytes: int | None
    steps: int
    guidance: float
    batch: int


class JobMessage(_Message):
    """A job; its input image, if it has one, is a blob of the frame."""

    id: str
    instruction: str
    image_size: tuple[int, int] | None
    steps: int
    guidance: float
    seed: int
    negative: str | None
    true_cfg: float
    size: tuple[int, int] | None
    images: int
    preset: str
    lora: str | None
    previews: int


class Run(_Message):
    """Jobs to run together."""

    kind: Literal["run"] = "run"
    jobs: tuple[JobMessage, ...]


class Cancel(_Message):
    kind: Literal["cancel"] = "cancel"
    job: str


Order = Annotated[Setup | Run | Cancel, Field(discriminator="kind")]
"""From the server to the worker."""


class PresetMessage(_Message):
    name: str
    summary: str
    labels: tuple[str, ...]
    lossy: bool
    optimizations: tuple[AppliedOptimization, ...]


class Timing(_Message):
    """A warm-up edit of one image at the native size."""

    preset: str
    steps: int
    seconds: float


class Ready(_Message):
    kind: Literal["ready"] = "ready"
    checkpoint: Checkpoint
    native: int
    text_tokens: int
    presets: tuple[PresetMessage, ...]
    environment: dict[str, Any]
    load_s: float
    timings: tuple[Timing, ...]
    swap_s: float | None
    """Of exchanging LoRAs; None without any."""


class JobStep(_Message):
    """`done` of the `total` steps of all its images have ended."""

    kind: Literal["step"] = "step"
    job: str
    done: int
    total: int


class JobPreview(_Message):
    """The picture is the blob."""

    kind: Literal["preview"] = "preview"
    job: str
    image: int
    index: int
    size: tuple[int, int]


class JobDone(_Message):
    """The pictures are the blobs."""

    kind: Literal["done"] = "done"
    job: str
    size: tuple[int, int]
    run_s: float
    preview_s: float
    swap_s: float
    step_kinds: tuple[StepKind, ...]
    cautions: tuple[str, ...] = ()


class JobError(_Message):
    kind: Literal["failed"] = "failed"
    job: str
    reason: Literal["input", "refused", "out of memory", "cancelled", "internal"]
    message: str


class Idle(_Message):
    """The worker waits for the next Run."""

    kind: Literal["idle"] = "idle"
    device_memory_bytes: int | None
    host_memory_bytes: int


class Unusable(_Message):
    """It could not load what Setup asks for."""

    kind: Literal["unusable"] = "unusable"
    message: str
    exit_code: int
    """Of `errors.py`."""


Report = Annotated[
    Ready | JobStep | JobPreview | JobDone | JobError | Idle | Unusable,
    Field(discriminator="kind"),
]
"""From the worker to the server."""

_orders: TypeAdapter[Order] = TypeAdapter(Order)
_reports: TypeAdapter[Report] = TypeAdapter(Report)


def frame(message: BaseModel, blobs: tuple[bytes, ...] = ()) -> list[bytes]:
    """The parts of a frame, to be written in order."""
    header = {"message": message.model_dump(mode="json"), "blobs": [len(blob) for blob in blobs]}
    return [json.dumps(header).encode() + b"\n", *blobs]


def read_header(line: bytes) -> tuple[Any, list[int]]:
    """The message, not validated, and the lengths of the blobs that follow."""
    header = json.loads(line)
    return header["message"], header["blobs"]


def read_order(message: Any) -> Order:
    """Raises pydantic.ValidationError if it is none."""
    return _orders.validate_python(message)


def read_report(message: Any) -> Report:
    """Raises pydantic.ValidationError if it is none."""
    return _reports.validate_python(message)


def pixels(image: Image) -> bytes:
    """8-bit RGB in rows."""
    return image.convert("RGB").tobytes()


def picture(size: tuple[int, int], content: bytes) -> Image:
    """The image that `pixels` was given."""
    from PIL import Image

    return Image.frombytes("RGB", size, content)
