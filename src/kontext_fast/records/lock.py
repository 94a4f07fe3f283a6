"""One writer at a time in a result folder: a lock that the system releases when its holder dies, and who holds it.

The lock is that of the library filelock on a file in the folder: where the file system has no locks, filelock keeps a
marker there instead, and takes over that of a process which no longer exists.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from kontext_fast.errors import InvalidInput
from kontext_fast.records.privacy import redact

LOCK_NAME = ".lock"
HOLDER_NAME = ".lock-holder.json"
LOCK_NAMES = frozenset({LOCK_NAME, HOLDER_NAME})
"""Files that say nothing of what a result folder holds."""
NAMED_WITHIN_S = 2.0
"""After taking the lock a holder has written its name, if it is alive."""


@dataclass(frozen=True)
class Holder:
    """The process that writes into a folder."""

    command: str
    pid: int
    host: str
    since: str
    """UTC, ISO 8601."""

    def __str__(self) -> str:
        return f"`{self.command}` (process {self.pid} on {self.host}, since {self.since})"


@contextmanager
def locked_folder(folder: Path, command: str) -> Iterator[None]:
    """Keep other processes and threads from writing into `folder`, which is created, until the context ends; a new
    folder in which nothing was written is removed again.

    `command` is what others are told. The thread that holds the lock may take it again. Raises InvalidInput, naming the
    holder, where another process or thread has it, and where the folder cannot be written.
    """
    lock = _lock(folder)
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise InvalidInput(_in_use(folder)) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidInput(f"{folder} cannot be written ({reason}); choose another folder.") from None
    try:
        if lock.lock_counter == 1:
            _write_holder(folder, command)
        yield
    finally:
        if lock.lock_counter == 1:
            (folder / HOLDER_NAME).unlink(missing_ok=True)
            if is_new:
                _remove_if_unused(folder)
        lock.release()


def _remove_if_unused(folder: Path) -> None:
    """Remove it while the lock is held, so that whoever waits for it finds its file gone and begins with a new one."""
    with suppress(OSError):
        if {file.name for file in folder.iterdir()} <= LOCK_NAMES:
            (folder / LOCK_NAME).unlink()
            folder.rmdir()


def check_unlocked(folder: Path) -> None:
    """Raise InvalidInput, naming the holder, where another process writes into `folder`, which need not exist."""
    if not (folder / LOCK_NAME).exists():
        return
    lock = _lock(folder)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InvalidInput(_in_use(folder)) from None
    except OSError:
        # Whoever may not write here learns it from what wants to write.
        return
    lock.release()


def _lock(folder: Path) -> FileLock:
    """The same one for the same folder, so that a thread which holds it may take it again."""
    return FileLock(folder.resolve() / LOCK_NAME, is_singleton=True)


def _in_use(folder: Path) -> str:
    deadline = time.monotonic() + NAMED_WITHIN_S
    while (holder := _read_holder(folder)) is None and time.monotonic() < deadline:
        # It has the lock, and writes its name next.
        time.sleep(0.02)
    who = "another process" if holder is None else str(holder)
    return f"{folder} is in use by {who}; wait until it has ended, or give another folder."


def _write_holder(folder: Path, command: str) -> None:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    holder = Holder(" ".join(redact(command).split()), os.getpid(), platform.node() or "this machine", since)
    temporary = folder / f"{HOLDER_NAME}.{os.getpid()}"
    temporary.write_bytes(json.dumps(asdict(holder)).encode())
    temporary.replace(folder / HOLDER_NAME)


def _read_holder(folder: Path) -> Holder | None:
    """None in the moment before the holder has written its name."""
    with suppress(OSError, ValueError, TypeError):
        return Holder(**json.loads((folder / HOLDER_NAME).read_bytes()))
    return None
