"""One look of the judge of the shapes world per output, shared by the metrics that ask it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kontext_fast.datasets.shapes import ShapesItem
from kontext_fast.metrics.base import Case, StoredOutput

if TYPE_CHECKING:
    from kontext_fast.datasets.shapes.judge import Judgement

_WORTH_A_PROCESS = 64
"""Outputs that take about as long to judge as a process takes to start."""
_seen: dict[tuple[str, str], Judgement] = {}


def judgement(case: Case) -> Judgement:
    """What the judge says of the output of a case whose item is of the shapes world."""
    from kontext_fast.datasets.shapes.judge import judge

    key = (case.item.id, case.digest)
    if key not in _seen:
        _seen[key] = judge(case.output, case.item)  # type: ignore[arg-type]
    return _seen[key]


def look_ahead(outputs: Iterable[StoredOutput]) -> None:
    """Judge stored outputs of the shapes world in as many processes as pay off; what else there is waits its turn."""
    todo = {
        (one.item.id, one.digest): (one.item, one.file)
        for one in outputs
        if isinstance(one.item, ShapesItem) and (one.item.id, one.digest) not in _seen
    }
    workers = min(_processors(), len(todo) // _WORTH_A_PROCESS)
    if workers < 2:
        return
    keys = list(todo)
    shares = [keys[start::workers] for start in range(workers)]
    found = _judged_apart([[todo[key] for key in share] for share in shares])
    for share, judgements in zip(shares, found, strict=True):
        _seen.update(zip(share, judgements, strict=bool(judgements)))


def _judged_apart(shares: Sequence[Sequence[tuple[ShapesItem, Path]]]) -> list[list[Judgement]]:
    """One process per share. Processes of their own and no fork: this one may hold a GPU, and threads of torch.

    A process that fails gives nothing, so that its share is judged in this one, where an error is seen.
    """
    command = [sys.executable, "-c", f"from {__name__} import judge_stdin; judge_stdin()"]
    processes = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        for _ in shares
    ]
    try:
        for process, share in zip(processes, shares, strict=True):
            assert process.stdin is not None
            with suppress(BrokenPipeError), process.stdin:
                process.stdin.write(pickle.dumps(share))
        return [_answer(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _answer(process: subprocess.Popen[bytes]) -> list[Judgement]:
    assert process.stdout is not None
    with process.stdout:
        answer = process.stdout.read()
    return pickle.loads(answer) if process.wait() == 0 else []


def judge_stdin() -> None:
    """The other process: pickled (item, file of the output) on stdin, their judgements on stdout."""
    from PIL import Image

    from kontext_fast.datasets.shapes.judge import judge

    found = []
    for item, file in pickle.loads(sys.stdin.buffer.read()):
        with Image.open(file) as image:
            found.append(judge(image.convert("RGB"), item))
    sys.stdout.buffer.write(pickle.dumps(found))


def _processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
