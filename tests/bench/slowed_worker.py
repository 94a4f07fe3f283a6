"""The real worker on a pipeline that is slower by a known fraction under one preset.

python slowed_worker.py PRESET=FRACTION DESCRIPTOR
"""

from __future__ import annotations

import sys
import time
from typing import Any

from kontext_fast.bench import measure, worker
from kontext_fast.bench.protocol import Job
from kontext_fast.bench.worker import Send

real_work, real_edit = worker._run, measure.edit


def slowed(fraction: float) -> Any:
    def edit(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        result = real_edit(*args, **kwargs)
        # Busy, since a sleeping process would be woken late by a busy machine.
        end = time.perf_counter() + fraction * (time.perf_counter() - begin)
        while time.perf_counter() < end:
            pass
        return result

    return edit


def work(job: Job, send: Send) -> None:
    preset, fraction = sys.argv[2].split("=")
    if job.preset == preset:
        measure.edit = slowed(float(fraction))
    real_work(job, send)


if __name__ == "__main__":
    sys.argv[1:] = [sys.argv[2], sys.argv[1]]
    worker._run = work
    worker.main()
