"""A worker process with everything but a model: its jobs do what their instructions say.

    python -m tests.server.scripted_worker DESCRIPTOR

`die`, `hang`, `out of memory` and `refuse` happen in the first step; any other instruction makes grey images, in steps
of STEP_S.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence

from PIL.Image import Image, new

from kontext_fast.errors import OutOfMemory
from kontext_fast.records.schema import Checkpoint
from kontext_fast.server import worker, worker_main
from kontext_fast.server.protocol import (
    Idle,
    JobDone,
    JobError,
    JobMessage,
    JobStep,
    PresetMessage,
    Ready,
    Report,
    Setup,
    Timing,
    pixels,
)

STEP_S = 0.05
NATIVE = 128
TEXT_TOKENS = 32
CHECKPOINT = Checkpoint(name="tiny", kind="tiny", weights_sha256="0" * 64, dtype="float32", transformer_parameters=1)
PRESETS = tuple(
    PresetMessage(name=name, summary=name, labels=(), lossy=False, optimizations=())
    for name in ("baseline", "faithful")
)

Send = Callable[[Report, tuple[bytes, ...]], None]


class ScriptedWorker:
    """In the place of `worker.ImageWorker`."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._lora: str | None = None

    def load(self) -> Ready:
        steps = self._setup.steps
        return Ready(
            checkpoint=CHECKPOINT,
            native=NATIVE,
            text_tokens=TEXT_TOKENS,
            presets=PRESETS,
            environment={},
            load_s=0.1,
            timings=(Timing(preset="baseline", steps=steps, seconds=steps * STEP_S),),
            swap_s=0.2 if self._setup.loras else None,
        )

    def run(
        self,
        messages: Sequence[JobMessage],
        pictures: Sequence[Image | None],
        send: Send,
        is_cancelled: Callable[[str], bool],
    ) -> None:
        for message in messages:
            self._run(message, send, is_cancelled)

    def _run(self, message: JobMessage, send: Send, is_cancelled: Callable[[str], bool]) -> None:
        start = time.perf_counter()
        if message.instruction == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if message.instruction == "hang":
            time.sleep(600)
        if message.instruction == "out of memory":
            send(JobError(job=message.id, reason="out of memory", message="The memory ran out."), ())
            raise OutOfMemory("The memory ran out.")
        if message.instruction == "refuse":
            send(JobError(job=message.id, reason="input", message="The instruction is too long."), ())
            return
        for step in range(message.steps * message.images):
            time.sleep(STEP_S)
            send(JobStep(job=message.id, done=step + 1, total=message.steps * message.images), ())
            if is_cancelled(message.id):
                send(JobError(job=message.id, reason="cancelled", message="The request was cancelled."), ())
                return
        size = message.size or (NATIVE, NATIVE)
        done = JobDone(
            job=message.id,
            size=size,
            run_s=time.perf_counter() - start,
            preview_s=0.0,
            swap_s=0.0,
            step_kinds=("full",) * message.steps,
        )
        send(done, (pixels(new("RGB", size, "gray")),) * message.images)

    def idle(self) -> Idle:
        return Idle(device_memory_bytes=None, host_memory_bytes=1)


if __name__ == "__main__":
    worker.ImageWorker = ScriptedWorker  # type: ignore[assignment,misc]
    worker_main.main()
