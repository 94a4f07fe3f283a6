"""The real worker on a pipeline that is slower by a known fraction, with a clock that other programs do not disturb.

python slowed_worker.py FRACTION DESCRIPTOR

The time of a call is processor time of this process, relative to the same edit run right before and right after it. So
a busy machine does not matter: waiting for a processor does not count, and contention for caches slows the reference
edits as well.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from kontext_fast.bench import measure, worker

real_edit = measure.edit
REFERENCE_S = 0.1
"""The time that the reference edit is defined to take."""


class Clock:
    """Advances only during measured calls."""

    def __init__(self, fraction: float) -> None:
        self._fraction = fraction
        self._now_s = 0.0
        self._reference_s: float | None = None

    def now(self) -> float:
        return self._now_s

    def edit(self, pipe: Any, request: Any, **options: Any) -> Any:
        """The real edit, followed by a busy loop of that fraction of its time."""
        before_s = self._reference_s or _processor_s(pipe, request)
        begin = time.process_time()
        result = real_edit(pipe, request, **options)
        end = time.process_time() + self._fraction * (time.process_time() - begin)
        while time.process_time() < end:
            pass
        took_s = time.process_time() - begin
        self._reference_s = _processor_s(pipe, request)
        self._now_s += REFERENCE_S * took_s / ((before_s + self._reference_s) / 2)
        return result


def _processor_s(pipe: Any, request: Any) -> float:
    begin = time.process_time()
    real_edit(pipe, request)
    return time.process_time() - begin


if __name__ == "__main__":
    clock = Clock(float(sys.argv[1]))
    measure.edit, measure.perf_counter = clock.edit, clock.now
    sys.argv[1:] = sys.argv[2:]
    worker.main()
