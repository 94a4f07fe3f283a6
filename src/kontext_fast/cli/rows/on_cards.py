"""Many images on several cards of this machine: one edit per card, side by side, each card with a process of its own.

Each process sees one card and takes the next image when it can, reading ahead and writing behind as on one card. Where
one is lost, what it had not finished is made again by another one, image by image: an image with which that is lost,
too, is a failure with its reason, and stops no other.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import StringIO
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from threading import Lock
from typing import TYPE_CHECKING, Any

from kontext_fast.cli.output import Outcome, progress_bar, say
from kontext_fast.cli.rows.run import edit_here, recorded
from kontext_fast.cli.session import (
    ImageJob,
    OnAllDone,
    OnDone,
    SessionReport,
    Setup,
    do_jobs,
    make_here,
    open_session,
)
from kontext_fast.errors import KontextError, words_of_exit

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from kontext_fast.cli.rows.facts import FactsFile

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def cards_for(setup: Setup) -> tuple[str, ...]:
    """The cards that `setup` may run on, as CUDA_VISIBLE_DEVICES names them; none where it names one device."""
    import torch

    # Under torchrun the processes are there already.
    if setup.device is not None or "RANK" in os.environ or not torch.cuda.is_available():
        return ()
    count = torch.cuda.device_count()
    visible = os.environ.get(_VISIBLE)
    return tuple(visible.split(",")[:count]) if visible else tuple(map(str, range(count)))


def make_on_cards(
    setup: Setup,
    jobs: Sequence[ImageJob],
    outcome: Outcome,
    then: OnAllDone,
    *,
    cards: Sequence[str] | None = None,
) -> None:
    """A `session.Maker` on as many cards as have something to do; `cards` are those of `cards_for` by default."""
    cards = cards_for(setup) if cards is None else cards
    if min(len(cards), len(jobs)) < 2:
        make_here(setup, jobs, outcome, then)
    else:
        then(_Cards(setup, jobs, outcome, None).run(cards[: len(jobs)]))


def edit_on_cards(
    setup: Setup,
    jobs: Sequence[ImageJob],
    facts_file: FactsFile,
    outcome: Outcome,
    *,
    cards: Sequence[str] | None = None,
) -> None:
    """A `run.Runner` on as many cards as have something to do; `cards` are those of `cards_for` by default."""
    cards = cards_for(setup) if cards is None else cards
    if min(len(cards), len(jobs)) < 2:
        edit_here(setup, jobs, facts_file, outcome)
    else:
        outcome.remark(_Cards(setup, jobs, outcome, facts_file).run(cards[: len(jobs)]).remarks)


@dataclass(eq=False)
class _Worker:
    """The process of a card, as this process sees it."""

    card: str
    process: BaseProcess
    connection: Connection
    one_by_one: bool
    """Whether it finishes an image before it begins the next one, so that what it is lost with is known."""
    has_loaded: bool = False
    taken: list[int] = field(default_factory=list)
    """Numbers of the jobs that it has not finished, in their order."""


class _Cards:
    """Jobs and the workers that do them."""

    def __init__(self, setup: Setup, jobs: Sequence[ImageJob], outcome: Outcome, facts_file: FactsFile | None) -> None:
        self._setup, self._jobs, self._outcome, self._facts_file = setup, jobs, outcome, facts_file
        self._waiting = deque(range(len(jobs)))
        self._again: deque[int] = deque()
        """Of workers that were lost."""
        self._workers: list[_Worker] = []
        self._lost_cards: set[str] = set()
        self._report: SessionReport | None = None

    def run(self, cards: Sequence[str]) -> SessionReport:
        """Do all jobs; what holds for one of the processes is reported. Raises what keeps one from being set up."""
        with progress_bar() as bar, self._outcome.interruptible():
            bar.begin(f"loading {self._setup.checkpoint} on {len(cards)} cards")
            add = self._outcome.printer(self._setup.preset, bar)
            try:
                for card in cards:
                    self._start(card)
                while self._workers:
                    for connection in wait([worker.connection for worker in self._workers]):
                        worker = next(each for each in self._workers if each.connection is connection)
                        try:
                            kind, *content = worker.connection.recv()
                        except (EOFError, OSError):
                            self._ended(worker, add)
                            continue
                        if kind == "loaded":
                            worker.has_loaded = True
                            self._report = self._report or content[0]
                        elif kind == "next":
                            self._give(worker)
                        elif kind == "done":
                            number, result = content
                            worker.taken.remove(number)
                            add(self._jobs[number], result)
                            done = len(self._jobs) - len(self._waiting) - len(self._again)
                            done -= sum(len(each.taken) for each in self._workers)
                            bar.begin(f"{done} of {len(self._jobs)}  on {len(cards)} cards", len(self._jobs))
                            bar.step(done, len(self._jobs))
                        else:
                            raise content[0]
                    if not self._workers and (self._again or self._waiting):
                        self._start_again(cards)
            finally:
                for worker in self._workers:
                    worker.process.kill()
                    worker.process.join()
        assert self._report is not None
        facts, remarks = self._report.facts, self._report.remarks
        return SessionReport({**facts, "cards": len(cards)}, [*remarks, f"Made on {len(cards)} cards, side by side."])

    def _start(self, card: str, *, one_by_one: bool = False) -> None:
        context = get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(
            target=_work, args=(there, self._setup, self._facts_file, one_by_one), name=f"card {card}", daemon=True
        )
        before = os.environ.get(_VISIBLE)
        os.environ[_VISIBLE] = card
        try:
            process.start()
        finally:
            os.environ.pop(_VISIBLE)
            if before is not None:
                os.environ[_VISIBLE] = before
        there.close()
        self._workers.append(_Worker(card, process, here, one_by_one))

    def _start_again(self, cards: Sequence[str]) -> None:
        """Have what is left done by a card that was not lost. Raises KontextError where all were."""
        left = [card for card in cards if card not in self._lost_cards]
        if not left:
            raise KontextError(
                "The processes of all cards ended before they had loaded the checkpoint; look for their end in the log "
                "of the system (out of memory, for one), then run the same command again."
            )
        self._start(left[0], one_by_one=True)

    def _give(self, worker: _Worker) -> None:
        """The next job, which a lost worker's is for one that works one by one; None where there is none."""
        source = self._again if worker.one_by_one and self._again else self._waiting
        number = source.popleft() if source else None
        if number is not None:
            worker.taken.append(number)
        with suppress(OSError):  # that it has ended is noticed when it is read
            worker.connection.send(None if number is None else (number, self._jobs[number]))

    def _ended(self, worker: _Worker, add: OnDone) -> None:
        worker.process.join()
        worker.connection.close()
        self._workers.remove(worker)
        code = worker.process.exitcode or 0
        if code == 0 and not worker.taken:
            return
        cause = words_of_exit(code)
        if not worker.has_loaded:
            self._lost_cards.add(worker.card)
            say(f"The process of card {worker.card} {cause} while it loaded; the others go on.")
            return
        say(f"The process of card {worker.card} {cause}; what it had not finished is made again.")
        if worker.one_by_one and worker.taken:
            reason = (
                f"The process of card {worker.card} {cause} at this image, as another one before it; look for the "
                "reason in the log of the system, and run the same command again."
            )
            add(self._jobs[worker.taken.pop(0)], KontextError(reason))
        self._again.extend(worker.taken)
        self._start(worker.card, one_by_one=True)


def _work(connection: Connection, setup: Setup, facts_file: FactsFile | None, one_by_one: bool) -> None:
    """The process of a card: do the jobs that come through `connection`, until None comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    # A bar of each process would be one too many. What is wrong is sent.
    sys.stderr = StringIO()
    lock, numbers = Lock(), dict[int, int]()

    def send(*message: Any) -> None:
        with lock:
            connection.send(message)

    def given() -> Iterator[ImageJob]:
        send("next")
        while (given := connection.recv()) is not None:
            number, job = given
            numbers[id(job)] = number
            # Asked for one ahead, so that it is there when it is needed.
            send("next")
            yield job

    def done(job: ImageJob, result: dict[str, Any] | KontextError) -> None:
        send("done", numbers[id(job)], result)

    try:
        with open_session(setup) as session:
            send("loaded", session.report())
            on_done, made = (done, None) if facts_file is None else recorded(setup, facts_file, done)
            for jobs in ([job] for job in given()) if one_by_one else [given()]:
                do_jobs(session, jobs, on_done, made)
    except (EOFError, BrokenPipeError):
        return  # the parent is gone
    except KontextError as error:
        send("failed", error)
    except Exception:
        send("failed", RuntimeError(traceback.format_exc()))
        raise
