"""Work of the host, such as compiling kernels, in threads beside what the calling thread does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def beside(calls: Sequence[Callable[[], object]]) -> Iterator[None]:
    """Run `calls` at once beside the body, and wait for them at its end, where what one of them raised is raised."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        started = [threads.submit(call) for call in calls]
        yield
        for one in started:
            one.result()
