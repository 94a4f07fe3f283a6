"""One worker process: started in a clean environment, read until it ends, and always ended with everything it started.

The parent reports the ends that a worker cannot report itself (a signal, a hang). Imports no torch.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Literal, TypeAlias

from pydantic import ValidationError

from kontext_fast.bench.protocol import Ended, Job, Message, Progress, read_message
from kontext_fast.errors import Refused

if TYPE_CHECKING:
    from kontext_fast.bench.preloaded import ForkedWorker

Process: TypeAlias = "subprocess.Popen[bytes] | ForkedWorker"

_TAIL_BYTES = 4000
_TAIL_BYTES_OF_STACKS = 16000
_STACK_TRACE_S = 5.0
"""How long the parent waits for a worker to write its stack traces."""
_GRACE_S = 3.0
"""Between the request to stop and the kill."""
_POLL_S = 0.5
"""How long the end of a worker can go unnoticed while a process that it started keeps its pipe open."""
_LONGEST_LINE = 64 * 2**20

_ENVIRONMENT = re.compile(
    r"""
    PATH | HOME | USER | LOGNAME | TMPDIR | TMP | TEMP | LANG | LC_.* | TZ | XDG_CACHE_HOME
    | PYTHONPATH | VIRTUAL_ENV | LD_LIBRARY_PATH | DYLD_LIBRARY_PATH | CC | CXX
    | (HF|HUGGING_FACE|CUDA|CUBLAS|CUDNN|NVIDIA|OMP|MKL|PYTORCH|TRITON|KONTEXT_FAST)_.* | TORCH.*
    | (?i:https?_proxy|no_proxy) | SSL_CERT_(FILE|DIR) | REQUESTS_CA_BUNDLE
    | (DIFFUSERS|TRANSFORMERS)_VERBOSITY
    """,
    re.VERBOSE,
)
"""Names of the variables that a worker gets: those that locate software and weights, and those known to change
numbers."""


@dataclass
class WorkerResult:
    """What a worker sent and how it ended."""

    messages: list[Message] = field(default_factory=list)
    """In order, without progress."""
    cause: Literal["exit", "deadline", "interrupt"] = "exit"
    """`deadline` and `interrupt`: the parent stopped it."""
    exit_code: int = 0
    """Negative: the number of the signal that killed it."""
    unreadable_lines: int = 0
    stderr_tail: str = ""
    """End of stderr and stdout together, not redacted. After a deadline it ends with the stack traces of all threads,
    the main thread last."""

    @property
    def ended(self) -> Ended | None:
        """Its last message; None if it ended without one."""
        last = self.messages[-1] if self.messages else None
        return last if isinstance(last, Ended) else None


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a worker may see, so that no unrecorded variable distinguishes the runs of two shells."""
    return {name: value for name, value in environment.items() if _ENVIRONMENT.fullmatch(name)}


def run_worker(
    command: Sequence[str] | None,
    job: Job,
    *,
    variables: Mapping[str, str],
    deadline_s: float,
    on_progress: Callable[[Progress], None],
) -> WorkerResult:
    """Run `command`, whose last argument is the number of the pipe to write messages to, until it ends.

    None is a worker that is forked from a process that has imported the libraries.
    It sees `variables` and those of this process's environment that a worker may see.
    Ctrl-C is not raised but reported in `cause`, so that the messages are kept. Raises Refused outside POSIX.
    """
    if os.name != "posix":
        raise Refused("Benchmarks need process groups, which this system lacks; run on Linux, macOS or WSL.")
    result = WorkerResult()
    with tempfile.TemporaryFile() as log:
        try:
            with _started(command, variables, log) as (process, channel):
                _send(process, job)
                if not _read_until_exit(process, channel, time.monotonic() + deadline_s, result, on_progress):
                    result.cause = "deadline"
                    _request_stack_traces(process, log)
            result.exit_code = process.returncode
        except KeyboardInterrupt:
            result.cause = "interrupt"
        result.stderr_tail = _tail(log, _TAIL_BYTES_OF_STACKS if result.cause == "deadline" else _TAIL_BYTES)
    return result


@contextmanager
def _started(
    command: Sequence[str] | None, variables: Mapping[str, str], log: IO[bytes]
) -> Iterator[tuple[Process, int]]:
    """The process, leader of a group of its own, and the descriptor to read its messages from."""
    channel, worker_side = os.pipe()
    os.set_blocking(channel, False)
    try:
        try:
            process = _start(command, worker_side, log, {**worker_environment(os.environ), **variables})
        finally:
            os.close(worker_side)
        with process:
            try:
                yield process, channel
            finally:
                _stop(process)
    finally:
        os.close(channel)


def _start(command: Sequence[str] | None, channel: int, log: IO[bytes], variables: Mapping[str, str]) -> Process:
    if command is None:
        from kontext_fast.bench.preloaded import ForkedWorker

        return ForkedWorker(channel, log, variables)
    return subprocess.Popen(
        [*command, str(channel)],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        env=variables,
        pass_fds=(channel,),
        start_new_session=True,
    )


def _request_stack_traces(process: Process, log: IO[bytes]) -> None:
    """Have a worker write the stack traces of its threads to `log`, while it still hangs.

    A worker that is inside of a call to the GPU's driver may write them late or never.
    """
    size = os.fstat(log.fileno()).st_size
    process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + _STACK_TRACE_S
    while time.monotonic() < deadline and os.fstat(log.fileno()).st_size == size:
        time.sleep(_POLL_S)
    time.sleep(_POLL_S)


def _send(process: Process, job: Job) -> None:
    """Write the job and leave the pipe open. That a worker has ended already is noticed when its messages are read."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(job.model_dump_json().encode() + b"\n")
        process.stdin.flush()


def _read_until_exit(
    process: Process,
    channel: int,
    deadline: float,
    result: WorkerResult,
    on_progress: Callable[[Progress], None],
) -> bool:
    """Collect messages in `result` until the worker has ended; False if the deadline came first."""
    pending = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        select.select([channel], [], [], min(left, _POLL_S))
        exited = process.poll() is not None
        data, at_end = _read_available(channel)
        *lines, pending = (pending + data).split(b"\n")
        if len(pending) > _LONGEST_LINE:
            pending = b""
        for line in lines:
            _receive(line, result, on_progress)
        if exited:
            return True
        if at_end:
            return _exits_before(process, deadline)


def _read_available(descriptor: int) -> tuple[bytes, bool]:
    """What is in the pipe now, and whether its other end is closed."""
    data = b""
    while len(data) <= _LONGEST_LINE:
        try:
            chunk = os.read(descriptor, 2**16)
        except BlockingIOError:
            return data, False
        if not chunk:
            return data, True
        data += chunk
    return data, False


def _receive(line: bytes, result: WorkerResult, on_progress: Callable[[Progress], None]) -> None:
    try:
        message = read_message(line)
    except ValidationError:
        result.unreadable_lines += 1
        return
    if isinstance(message, Progress):
        on_progress(message)
    else:
        result.messages.append(message)


def _exits_before(process: Process, deadline: float) -> bool:
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _stop(process: Process) -> None:
    """Interrupt the worker, so that it leaves nothing half-written, and then kill everything that it started."""
    try:
        if process.poll() is None:
            _signal_group(process, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
    finally:
        _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: Process, number: signal.Signals) -> None:
    # macOS raises PermissionError for a group of which only zombies are left.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _tail(log: IO[bytes], most_bytes: int) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - most_bytes))
    return log.read().decode(errors="replace").strip()
