"""Run tests on every mutant in a fork of one pytest session, which has collected and run them all before.

Collecting tests and loading the bundled checkpoint take seconds, most tests milliseconds: a fork pays for those alone.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import process_time
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

SURVIVED, NOTICED, TIMEOUT = 0, 1, 36
"""The codes of outcomes, as mutmut writes them."""

_VARIABLE = "MUTANT_UNDER_TEST"


class ForkedTests:
    """A pytest plugin: its session runs all tests, and then on each of `mutants` those that reach its function,
    or all.

    Until one fails: those that noticed other mutants of the function come first, then the quickest, of `seconds` of a
    processor in all. `take_reached` empties and returns the names of functions that ran since it was called last.
    `outcomes` has the code of each mutant that was tried, by one of `processes`.
    """

    def __init__(
        self, mutants: Sequence[str], seconds: float, take_reached: Callable[[], set[str]], processes: int = 1
    ) -> None:
        self.outcomes: dict[str, int] = {}
        self._processes = processes
        self._mutants = mutants
        self._seconds = seconds
        self._take_reached = take_reached
        self._took: dict[pytest.Item, float] = {}
        self._reaching: dict[str, list[pytest.Item]] = defaultdict(list)
        self._noticing: dict[str, list[pytest.Item]] = defaultdict(list)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("tests could not be collected")
        os.environ[_VARIABLE] = "stats"
        for item, following in zip(session.items, [*session.items[1:], session], strict=True):
            self._measure(item, following)
        gc.freeze()  # A collection in a fork would write to all objects, and so copy them.
        reading, writing = os.pipe()
        workers = [self._start(session, number, writing) for number in range(self._processes)]
        os.close(writing)
        with os.fdopen(reading) as lines:
            for line in lines:
                mutant, code = line.split()
                self.outcomes[mutant] = int(code)
                if int(code) == SURVIVED:
                    count = f"{len(self.outcomes)} of {len(self._mutants)}"
                    print(f"{count}: {mutant} was not noticed", file=sys.__stderr__, flush=True)
        for worker in workers:
            os.waitpid(worker, 0)
        return True

    def _start(self, session: pytest.Session, number: int, writing: int) -> int:
        """The process that tries the share `number` and writes the codes, in lines which no other process can break."""
        worker = os.fork()
        if worker == 0:
            try:
                for mutant in self._mutants[number :: self._processes]:
                    os.write(writing, f"{mutant} {self._try(session, mutant)}\n".encode())
            except Exception:  # noqa: BLE001 - the process ends here, and what is missing is told by the parent
                traceback.print_exc(file=sys.__stderr__)
            finally:
                os._exit(0)
        return worker

    def _measure(self, item: pytest.Item, following: Any) -> None:
        _forget_cached_results()
        self._take_reached()
        begin = _processor_seconds()
        if _fails(item, following):
            raise pytest.UsageError(f"{item.nodeid} fails on the sources as they are")
        self._took[item] = _processor_seconds() - begin
        for function in self._take_reached():
            self._reaching[function].append(item)

    def _try(self, session: pytest.Session, mutant: str) -> int:
        function = mutant.rpartition("__mutmut_")[0]
        items = self._chosen(function)
        allowed = 10 + 10 * sum(self._took[item] for item in items)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            _run_until_a_test_fails(session, mutant, items, allowed, writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            failed = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if failed:
            item = items[int(failed)]
            others = (other for other in self._noticing[function] if other is not item)
            self._noticing[function] = [item, *others]
        return SURVIVED if status == 0 else TIMEOUT if status < 0 else NOTICED

    def _chosen(self, function: str) -> list[pytest.Item]:
        items = list(self._noticing[function])
        left = self._seconds - sum(self._took[item] for item in items)
        # What none reaches in this process may run in one that a test starts.
        for item in sorted(self._reaching[function] or self._took, key=self._took.__getitem__):
            if item in items:
                continue
            left -= self._took[item]
            if items and left < 0:
                break
            items.append(item)
        return items


def _run_until_a_test_fails(
    session: pytest.Session, mutant: str, items: Sequence[pytest.Item], allowed: float, writing: int
) -> None:
    """Does not return: the process ends here, with nothing of the session torn down, and 0 where no test failed."""
    code = NOTICED
    with suppress(BaseException):
        os.environ[_VARIABLE] = mutant
        limit = int(process_time() + allowed) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(6 * allowed))
        _forget_cached_results()
        for number, (item, following) in enumerate(zip(items, [*items[1:], session], strict=True)):
            if _fails(item, following):
                os.write(writing, str(number).encode())
                break
        else:
            code = SURVIVED
    os._exit(code)


def _processor_seconds() -> float:
    """Of this process and its children, whatever else the machine does."""
    return sum(os.times()[:4])


def _fails(item: pytest.Item, following: Any) -> bool:
    return any(report.failed for report in runtestprotocol(item, log=False, nextitem=following))


def _forget_cached_results() -> None:
    """A function whose result is cached would not run, and so its change not be noticed."""
    for name, module in list(sys.modules.items()):
        if name.startswith("kontext_fast"):
            for value in list(vars(module).values()):
                if callable(clear := getattr(value, "cache_clear", None)):
                    clear()
