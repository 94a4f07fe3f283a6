"""One worker process: started clean, listened to, and always ended, with everything it started.

Ends that a worker cannot report itself (a signal, a hang) are told from outside. Imports no torch.
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
from typing import IO, Literal

from pydantic import ValidationError

from kontext_fast.bench.protocol import Ended, Job, Message, Progress, read_message
from kontext_fast.bench.redact import redact
from kontext_fast.errors import Refused

_TAIL_BYTES = 4000
_TAIL_BYTES_OF_STACKS = 16000
_ANSWER_S = 5.0
"""What a worker gets to say where it is."""
_GRACE_S = 3.0
"""Between the request to stop and the kill."""
_POLL_S = 0.5
"""How long a dead worker can go unnoticed while something it started keeps its pipe open."""
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
"""Names of the variables that a worker gets: what finds software and weights, and what is known to change numbers."""


@dataclass
class WorkerEnd:
    """What a worker said and how it ended."""

    messages: list[Message] = field(default_factory=list)
    """In order, without progress."""
    cause: Literal["exit", "deadline", "interrupt"] = "exit"
    """`deadline` and `interrupt`: it was stopped from outside."""
    exit_code: int = 0
    """Negative: the number of the signal that killed it."""
    unreadable_lines: int = 0
    stderr_tail: str = ""
    """End of stderr and stdout together, without private facts. After a deadline it ends with where the threads were,
    the main one last."""

    @property
    def ended(self) -> Ended | None:
        """Its last word; None if it ended without one."""
        last = self.messages[-1] if self.messages else None
        return last if isinstance(last, Ended) else None


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a worker may see, so that runs of two shells differ in nothing unrecorded."""
    return {name: value for name, value in environment.items() if _ENVIRONMENT.fullmatch(name)}


def run_worker(
    command: Sequence[str],
    job: Job,
    *,
    variables: Mapping[str, str],
    deadline_s: float,
    on_progress: Callable[[Progress], None],
) -> WorkerEnd:
    """Run `command`, which gets the number of the pipe to answer on as its last argument, until it ends.

    It sees `variables` and those of this process's environment that a worker may see.
    Ctrl-C is not raised but told in `cause`, so that what the worker said is kept. Raises Refused outside POSIX.
    """
    if os.name != "posix":
        raise Refused("Benchmarks need process groups, which this system lacks; run on Linux, macOS or WSL.")
    end = WorkerEnd()
    with tempfile.TemporaryFile() as log:
        try:
            with _started(command, variables, log) as (process, answers):
                _send(process, job)
                if not _listen(process, answers, time.monotonic() + deadline_s, end, on_progress):
                    end.cause = "deadline"
                    _ask_where_it_is(process, log)
            end.exit_code = process.returncode
        except KeyboardInterrupt:
            end.cause = "interrupt"
        end.stderr_tail = _tail(log, _TAIL_BYTES_OF_STACKS if end.cause == "deadline" else _TAIL_BYTES)
    return end


@contextmanager
def _started(
    command: Sequence[str], variables: Mapping[str, str], log: IO[bytes]
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The process, leader of a group of its own, and the descriptor to read its answers from."""
    answers, worker_side = os.pipe()
    os.set_blocking(answers, False)
    try:
        try:
            process = subprocess.Popen(
                [*command, str(worker_side)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**worker_environment(os.environ), **variables},
                pass_fds=(worker_side,),
                start_new_session=True,
            )
        finally:
            os.close(worker_side)
        with process:
            try:
                yield process, answers
            finally:
                _stop(process)
    finally:
        os.close(answers)


def _ask_where_it_is(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    """Have a worker write to `log` where each of its threads is: only now can that be known.

    One that is inside of a call to the GPU's driver may answer late or never.
    """
    before = os.fstat(log.fileno()).st_size
    process.send_signal(signal.SIGUSR1)
    asked = time.monotonic()
    while time.monotonic() < asked + _ANSWER_S and os.fstat(log.fileno()).st_size == before:
        time.sleep(_POLL_S)
    time.sleep(_POLL_S)


def _send(process: subprocess.Popen[bytes], job: Job) -> None:
    """Write the job and leave the pipe open. A worker that is gone already is found out by listening."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(job.model_dump_json().encode() + b"\n")
        process.stdin.flush()


def _listen(
    process: subprocess.Popen[bytes],
    answers: int,
    deadline: float,
    end: WorkerEnd,
    on_progress: Callable[[Progress], None],
) -> bool:
    """Gather messages until the worker is gone; False if the deadline came first."""
    pending = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        select.select([answers], [], [], min(left, _POLL_S))
        exited = process.poll() is not None
        data, at_end = _read_available(answers)
        *lines, pending = (pending + data).split(b"\n")
        if len(pending) > _LONGEST_LINE:
            pending = b""
        for line in lines:
            _take(line, end, on_progress)
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


def _take(line: bytes, end: WorkerEnd, on_progress: Callable[[Progress], None]) -> None:
    try:
        message = read_message(line)
    except ValidationError:
        end.unreadable_lines += 1
        return
    if isinstance(message, Progress):
        on_progress(message)
    else:
        end.messages.append(message)


def _exits_before(process: subprocess.Popen[bytes], deadline: float) -> bool:
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the worker, politely at first so that it leaves nothing half-written, and then all it started."""
    try:
        if process.poll() is None:
            _signal_group(process, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
    finally:
        _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # PermissionError: macOS says so of a group of which only zombies are left.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _tail(log: IO[bytes], most_bytes: int) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - most_bytes))
    return redact(log.read().decode(errors="replace").strip())
