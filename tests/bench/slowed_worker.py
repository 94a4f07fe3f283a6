"""The real worker on a pipeline that is slower by a known fraction, with a clock that other programs do not disturb.

python slowed_worker.py FRACTION DESCRIPTOR

What a call spends is seconds of this process on a processor, in units of the same edit run right before and right
after it. So the machine may be as busy as it likes: who waits for a processor is not charged for it, and what its
neighbours do to its caches is done to the yardstick as well.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from kontext_fast.bench import measure, worker

real_edit = measure.edit
YARDSTICK_S = 0.1
"""What the yardstick is taken to spend."""


class Clock:
    """Stands still but for the calls that are measured."""

    def __init__(self, fraction: float) -> None:
        self._fraction = fraction
        self._now_s = 0.0
        self._yardstick_s: float | None = None

    def now(self) -> float:
        return self._now_s

    def edit(self, pipe: Any, request: Any, **options: Any) -> Any:
        """The real edit and, really spent, the fraction more."""
        before_s = self._yardstick_s or _spent(pipe, request)
        begin = time.process_time()
        result = real_edit(pipe, request, **options)
        end = time.process_time() + self._fraction * (time.process_time() - begin)
        while time.process_time() < end:
            pass
        took_s = time.process_time() - begin
        self._yardstick_s = _spent(pipe, request)
        self._now_s += YARDSTICK_S * took_s / ((before_s + self._yardstick_s) / 2)
        return result


def _spent(pipe: Any, request: Any) -> float:
    begin = time.process_time()
    real_edit(pipe, request)
    return time.process_time() - begin


if __name__ == "__main__":
    clock = Clock(float(sys.argv[1]))
    measure.edit, measure.perf_counter = clock.edit, clock.now
    sys.argv[1:] = sys.argv[2:]
    worker.main()
