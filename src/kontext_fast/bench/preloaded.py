"""Workers that need not import the libraries: each is forked from a process that did, and has run nothing else.

It is a process of its own like any other, with a checkpoint that it loads itself; only the seconds that torch and
diffusers take to import are spared. The process that they are forked from is the fork server of the standard library.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from multiprocessing import get_context, set_start_method
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from types import TracebackType
from typing import IO

from kontext_fast.bench import worker
from kontext_fast.errors import Refused


class ForkedWorker:
    """What a parent of workers uses of `subprocess.Popen`."""

    def __init__(self, channel: int, log: IO[bytes], variables: Mapping[str, str]) -> None:
        """`channel` is the descriptor to write messages to; `variables` is the whole environment.

        Raises Refused where processes cannot be forked from a server.
        """
        job, own = os.pipe()
        self.stdin = os.fdopen(own, "wb")
        self.returncode = 0
        # Descriptors travel to another process as connections only.
        ends = [Connection(os.dup(channel), readable=False), Connection(os.dup(log.fileno())), Connection(job)]
        try:
            self._process = _context().Process(target=_work, args=(*ends, dict(variables)), daemon=True)
            self._process.start()
        finally:
            for end in ends:
                end.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def __enter__(self) -> ForkedWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stdin.close()
        self.wait()

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        code = self._process.exitcode
        self.returncode = 0 if code is None else code
        return code

    def wait(self, timeout: float | None = None) -> int:
        """The exit code once it has ended. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired("worker", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


@cache
def _context() -> ForkServerContext:
    try:
        context = get_context("forkserver")
    except ValueError:
        raise Refused("This system cannot fork processes from a server; run on Linux, macOS or WSL.") from None
    context.set_forkserver_preload(["torch", "diffusers.pipelines.flux", "transformers", worker.__name__])
    return context


def _work(channel: Connection, log: Connection, job: Connection, variables: Mapping[str, str]) -> None:
    """The worker, with the descriptors and the environment that it would have been started with."""
    os.setsid()
    # A semaphore of a process that forks needs no cleaning up, for which a worker, which ends at once, has no time.
    set_start_method("fork", force=True)
    os.environ.clear()
    os.environ.update(variables)
    for number, descriptor in ((0, job), (1, log), (2, log)):
        os.dup2(descriptor.fileno(), number)
    # The server has neither; what is printed would be lost.
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    sys.argv = ["worker", str(channel.fileno())]
    worker.main()
