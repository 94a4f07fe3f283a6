"""The server's side of one worker process: started, spoken to, and ended with everything that it started."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from pydantic import BaseModel

from kontext_fast.bench.process import worker_environment
from kontext_fast.errors import words_of_exit
from kontext_fast.server.protocol import Report, Setup, frame, read_header, read_report

COMMAND = (sys.executable, "-m", "kontext_fast.server.worker_main")

_STDERR = 2
_LONGEST_LINE = 2**20
_STACK_TRACE_S = 1.0
"""How long a worker that hangs gets to write the stacks of its threads to stderr."""
_QUIET: Mapping[str, str] = {"DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error"}
"""Their warnings would put the end of a long prompt into the log."""


class WorkerDied(Exception):
    """The process has ended; nothing more comes from it."""


class WorkerProcess:
    """One process, from `start` to `kill`. Its stdout and stderr are the server's stderr."""

    def __init__(self, process: asyncio.subprocess.Process, reports: asyncio.StreamReader) -> None:
        self._process = process
        self._write_lock = asyncio.Lock()
        self._incoming: asyncio.Queue[tuple[Report, list[bytes]] | WorkerDied] = asyncio.Queue()
        self._death: asyncio.Future[WorkerDied] = asyncio.get_running_loop().create_future()
        # A task of its own, so that whoever waits for a report can stop waiting in the middle of one.
        self._reading = asyncio.create_task(self._read_all(reports))

    @classmethod
    async def start(cls, setup: Setup, command: Sequence[str] = COMMAND) -> WorkerProcess:
        """A process that begins to load what `setup` says; its first report is Ready or Unusable."""
        channel, worker_side = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                str(worker_side),
                stdin=asyncio.subprocess.PIPE,
                stdout=_STDERR,
                env={**worker_environment(os.environ), **_QUIET},
                pass_fds=(worker_side,),
                start_new_session=True,
            )
        except BaseException:
            os.close(channel)
            raise
        finally:
            os.close(worker_side)
        reader = asyncio.StreamReader(limit=_LONGEST_LINE)
        protocol = asyncio.StreamReaderProtocol(reader)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(channel, "rb", buffering=0))
        worker = cls(process, reader)
        await worker.send(setup)
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    async def send(self, order: BaseModel, blobs: tuple[bytes, ...] = ()) -> None:
        """Write an order. That the worker has ended is noticed when its reports are read."""
        stdin = self._process.stdin
        assert stdin is not None
        async with self._write_lock:
            with suppress(BrokenPipeError, ConnectionResetError):
                stdin.writelines(frame(order, blobs))
                await stdin.drain()

    async def receive(self) -> tuple[Report, list[bytes]]:
        """The next report and its blobs. Raises WorkerDied when none can come any more."""
        report = await self._incoming.get()
        if isinstance(report, WorkerDied):
            self._incoming.put_nowait(report)
            raise report
        return report

    async def died(self) -> None:
        """Raises WorkerDied when the process ends."""
        raise await asyncio.shield(self._death)

    async def write_stacks(self) -> None:
        """Have a worker that hangs write the stacks of its threads to stderr, for whoever reads the log."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGUSR1)
            await asyncio.sleep(_STACK_TRACE_S)

    async def kill(self) -> None:
        """End the process and everything that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        stdin = self._process.stdin
        if stdin is not None:
            stdin.close()

    async def close(self) -> None:
        """Kill the process, and read nothing any more."""
        await self.kill()
        self._reading.cancel()

    async def _read_all(self, reports: asyncio.StreamReader) -> None:
        try:
            while True:
                message, lengths = read_header(await reports.readuntil(b"\n"))
                blobs = [await reports.readexactly(length) for length in lengths]
                self._incoming.put_nowait((read_report(message), blobs))
        # A frame that is cut off, or something that is no frame: either way there is nothing left to trust.
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, KeyError, ValueError):
            await self.kill()
            death = WorkerDied(words_of_exit(self._process.returncode or 0))
            self._incoming.put_nowait(death)
            self._death.set_result(death)
