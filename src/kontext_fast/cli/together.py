"""Each image on several GPUs at once: `kontext edit --gpus N`, and the same command under `torchrun`.

`--gpus` starts a process per GPU; all make every image together, the first one saves it, and this one prints. Where one
ends early, all are ended, and the reason is said once.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from kontext_fast.cli.output import Outcome, progress_bar
from kontext_fast.cli.session import (
    ImageJob,
    Maker,
    OnAllDone,
    SessionReport,
    Setup,
    do_jobs,
    make_here,
    open_session,
)
from kontext_fast.errors import InvalidInput, KontextError, Refused, words_of_exit

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

_GRACE_S = 3.0
"""For other processes to say what is wrong, after the first one said so or was lost."""


def gpus_of(asked: int | None) -> int:
    """How many GPUs make each image: of `--gpus` or of `torchrun`. Raises InvalidInput where the two differ."""
    started = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if asked is not None and asked < 1:
        raise InvalidInput(f"--gpus is {asked}; give a whole number of at least 1.")
    if started > 1 and asked not in (None, started):
        raise InvalidInput(f"torchrun started {started} processes; leave out --gpus {asked}.")
    return max(started, asked or 1)


def maker(preset: str, gpus: int, device: str | None) -> Maker:
    """What makes images with `preset` on `gpus` GPUs, each of them on all.

    Raises InvalidInput for a preset that runs on one alone, and Refused where there are fewer.
    """
    import torch

    from kontext_fast.optimizations.presets import find_preset

    find_preset(preset).replace(gpus=gpus)
    if device not in (None, "cpu", "cuda"):
        raise InvalidInput(f"--gpus {gpus} runs on the first {gpus} GPUs; leave out --device {device}.")
    count = torch.cuda.device_count()
    if device != "cpu" and count < gpus:
        raise Refused(
            f"--gpus {gpus} needs as many GPUs and torch sees {count} here; use --gpus {count}."
            if count > 1
            else f"--gpus {gpus} needs as many GPUs and torch sees {count} here; leave it out."
        )
    if "RANK" in os.environ:
        if os.environ["RANK"] != "0":
            # The first process says all that is the same for all.
            sys.stdout, sys.stderr = StringIO(), StringIO()
        return _make_as_one_of_all
    return _Together(gpus).make


def _of_rank(setup: Setup, rank: int, gpus: int) -> Setup:
    return replace(setup, gpus=gpus, device="cpu" if setup.device == "cpu" else f"cuda:{rank}")


def _make_as_one_of_all(setup: Setup, jobs: Sequence[ImageJob], outcome: Outcome, then: OnAllDone) -> None:
    """A `session.Maker` of a process that `torchrun` started: the first one saves and prints."""
    rank, gpus = int(os.environ.get("LOCAL_RANK", os.environ["RANK"])), int(os.environ["WORLD_SIZE"])
    setup = _of_rank(setup, rank, gpus)
    if os.environ["RANK"] == "0":
        make_here(setup, jobs, outcome, then)
        return
    try:
        with open_session(setup) as session:
            session.saves = False
            do_jobs(session, jobs, lambda *_: None)
    except Exception as error:
        if not _is_of_another(error):
            sys.stderr = sys.__stderr__
        raise


class _Together:
    """The processes of one command."""

    def __init__(self, gpus: int) -> None:
        self._gpus = gpus
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []

    def make(self, setup: Setup, jobs: Sequence[ImageJob], outcome: Outcome, then: OnAllDone) -> None:
        """A `session.Maker`. Raises KontextError where a process ends early."""
        with progress_bar() as bar, outcome.interruptible():
            bar.begin(f"loading {setup.checkpoint} on {self._gpus} GPUs")
            add = outcome.printer(setup.preset, bar)
            report: SessionReport | None = None
            try:
                self._start(setup, jobs)
                open_ones = list(self._connections)
                while open_ones:
                    for connection in wait(open_ones):
                        assert isinstance(connection, Connection)
                        kind, content = self._message(connection)
                        if kind == "ended":
                            open_ones.remove(connection)
                        elif kind == "loaded":
                            report = content
                            bar.begin(f"1 of {len(jobs)}  on {self._gpus} GPUs", len(jobs))
                        else:
                            number, result = content
                            add(jobs[number], result)
                            bar.step(number + 1, len(jobs))
            finally:
                for process in self._processes:
                    process.kill()
                    process.join()
        assert report is not None
        then(report)

    def _start(self, setup: Setup, jobs: Sequence[ImageJob]) -> None:
        context = get_context("spawn")
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            port = listening.getsockname()[1]
        for rank in range(self._gpus):
            variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self._gpus)}
            variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            here, there = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(there, variables, _of_rank(setup, rank, self._gpus), jobs), daemon=True
            )
            process.start()
            there.close()
            self._processes.append(process)
            self._connections.append(here)

    def _message(self, connection: Connection) -> tuple[str, Any]:
        """What the process of `connection` says. Raises the error that ends all."""
        try:
            kind, content = connection.recv()
        except (EOFError, OSError):
            raise self._lost(connection) from None
        if kind == "failed" or (kind == "done" and _is_of_another(content[1])):
            raise self._cause(connection, content if kind == "failed" else content[1])
        return kind, content

    def _lost(self, connection: Connection) -> KontextError:
        rank = self._connections.index(connection)
        self._processes[rank].join(_GRACE_S)
        how = words_of_exit(self._processes[rank].exitcode or 0)
        return KontextError(
            f"The process of GPU {rank} {how}, so the others were ended, too; look for the reason in the log of the "
            "system (out of memory, for one), then run the same command again."
        )

    def _cause(self, first: Connection, error: Exception) -> Exception:
        """`error`, or what made it: another process that is lost or failed, too."""
        end = time.monotonic() + _GRACE_S
        others = [connection for connection in self._connections if connection is not first]
        while _is_of_another(error) and others and (left := end - time.monotonic()) > 0:
            for connection in wait(others, left):
                assert isinstance(connection, Connection)
                try:
                    kind, content = connection.recv()
                except (EOFError, OSError):
                    others.remove(connection)
                    error = self._lost(connection)
                    continue
                if kind == "ended":
                    others.remove(connection)
                elif kind == "failed":
                    error = content
        return error


def _is_of_another(error: Any) -> bool:
    """Whether `error` only says that another process failed."""
    if not isinstance(error, KontextError):
        return False
    from kontext_fast.engine.ranks import FailedElsewhere

    return isinstance(error, FailedElsewhere)


def _work(connection: Connection, variables: dict[str, str], setup: Setup, jobs: Sequence[ImageJob]) -> None:
    """One of the processes: make all images, and save them in the first process, which says so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    # A bar of each process would be one too many. What is wrong is sent.
    sys.stderr = StringIO()
    os.environ |= variables
    numbers = {id(job): number for number, job in enumerate(jobs)}
    is_first = variables["RANK"] == "0"

    def done(job: ImageJob, result: dict[str, Any] | KontextError) -> None:
        if is_first or _is_of_another(result):
            connection.send(("done", (numbers[id(job)], result)))

    try:
        with open_session(setup) as session:
            session.saves = is_first
            if is_first:
                connection.send(("loaded", session.report()))
            do_jobs(session, jobs, done)
            connection.send(("ended", None))
    except BrokenPipeError:
        return  # the parent is gone
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent says it
        connection.send(("failed", error))
