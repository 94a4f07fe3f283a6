"""The process of one worker: reads orders from stdin, runs them, and reports to a pipe.

    python -m kontext_fast.server.worker_main DESCRIPTOR

An unexpected exception ends it with a traceback on stderr; the server starts another one.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import resource
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from kontext_fast.errors import KontextError
from kontext_fast.pipeline.load import NOISY_LOGGERS
from kontext_fast.server.protocol import (
    Cancel,
    Report,
    Run,
    Setup,
    Unusable,
    frame,
    picture,
    read_header,
    read_order,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from kontext_fast.server.worker import ImageWorker


class _Inbox:
    """Orders as they arrive: cancellations count at once, runs wait for their turn."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.runs: queue.SimpleQueue[tuple[Run, list[Image | None]]] = queue.SimpleQueue()
        self._active: set[str] = set()
        self._cancelled: set[str] = set()

    def read_setup(self) -> Setup:
        order, _ = self._read()
        assert isinstance(order, Setup)
        return order

    def read_all(self) -> None:
        """Read until stdin closes; then the server has died, and the process group is ended to free the card."""
        try:
            while True:
                order, blobs = self._read()
                if isinstance(order, Cancel) and order.job in self._active:
                    self._cancelled.add(order.job)
                elif isinstance(order, Run):
                    self._active |= {job.id for job in order.jobs}
                    self.runs.put((order, _pictures(order, blobs)))
        finally:
            os.killpg(os.getpgrp(), signal.SIGKILL)

    def is_cancelled(self, job: str) -> bool:
        return job in self._cancelled

    def forget(self, run: Run) -> None:
        """Its jobs have ended, so that cancelling them means nothing any more."""
        ended = {job.id for job in run.jobs}
        self._active -= ended
        self._cancelled -= ended

    def _read(self) -> tuple[Setup | Run | Cancel, list[bytes]]:
        line = self._stream.readline()
        if not line:
            raise EOFError
        message, lengths = read_header(line)
        return read_order(message), [self._stream.read(length) for length in lengths]


class _Outbox:
    """The pipe to the server; frames are written whole."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._channel = os.fdopen(descriptor, "wb")

    def send(self, report: Report, blobs: tuple[bytes, ...] = ()) -> None:
        self._channel.writelines(frame(report, blobs))
        self._channel.flush()


def main() -> NoReturn:
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    # The server sends this signal to a worker that hangs, before it ends it.
    faulthandler.register(signal.SIGUSR1)
    outbox, inbox = _Outbox(int(sys.argv[1])), _Inbox(sys.stdin.buffer)
    try:
        setup = inbox.read_setup()
        threading.Thread(target=inbox.read_all, daemon=True).start()
        _serve(_loaded(setup, outbox), inbox, outbox)
    except BaseException:  # noqa: BLE001 - whatever it is, Python would print it and exit, but slowly
        traceback.print_exc()
        _exit(1)


def _loaded(setup: Setup, outbox: _Outbox) -> ImageWorker:
    from kontext_fast.server.worker import ImageWorker

    if setup.memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (setup.memory_bytes, setup.memory_bytes))
    worker = ImageWorker(setup)
    try:
        outbox.send(worker.load())
    except KontextError as error:
        outbox.send(Unusable(message=str(error), exit_code=error.exit_code))
        _exit(1)
    return worker


def _serve(worker: ImageWorker, inbox: _Inbox, outbox: _Outbox) -> NoReturn:
    while True:
        outbox.send(worker.idle())
        run, pictures = inbox.runs.get()
        worker.run(run.jobs, pictures, outbox.send, inbox.is_cancelled)
        inbox.forget(run)


def _pictures(run: Run, blobs: list[bytes]) -> list[Image | None]:
    remaining = iter(blobs)
    return [None if job.image_size is None else picture(job.image_size, next(remaining)) for job in run.jobs]


def _exit(code: int) -> NoReturn:
    """End the process at once: shutting down the interpreter takes seconds with a model loaded."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
