"""Jobs as the app makes them."""

from __future__ import annotations

import itertools

from kontext_fast.pipeline.edit import EditRequest
from kontext_fast.pipeline.sizes import plan_size
from kontext_fast.server.jobs import Job

_numbers = itertools.count()


def job(
    instruction: str = "make the background red",
    *,
    steps: int = 2,
    images: int = 1,
    size: tuple[int, int] | None = None,
    preset: str = "baseline",
    lora: str | None = None,
    deadline_s: float = 60.0,
    previews: int = 0,
) -> Job:
    """A text-to-image job of the size of `tiny`."""
    request = EditRequest(instruction, None, steps=steps, seed=7, size=size, batch=images)
    return Job(
        id=f"job-{next(_numbers)}",
        request=request,
        size=plan_size(None, requested=size, native=128, text_tokens=32),
        preset=preset,
        lora=lora,
        previews=previews,
        deadline_s=deadline_s,
    )
