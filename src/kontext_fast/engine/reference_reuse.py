"""When reference tokens run again.

Their input is the same at every step; what changes their keys and values is the timestep and what they see of the
image being made. At a refresh all tokens run; at the steps between only text and image tokens do, and attend to the
reference as it was at the last refresh.
"""

from __future__ import annotations


def refresh_steps(refreshed: int | tuple[int, ...], total: int) -> frozenset[int]:
    """The 0-based steps of `total` that refresh: the ones given, or one in that many from the first on."""
    if isinstance(refreshed, tuple):
        return frozenset(step for step in refreshed if step < total)
    return frozenset(range(0, total, refreshed))


def refresh_due(steps: frozenset[int], step: int, last: int | None) -> bool:
    """Whether a computed `step` must refresh, when the last refresh was at `last` (None: there was none).

    A refresh that fell on a skipped step is made up for at the next computed one.
    """
    return last is None or any(last < due <= step for due in steps)
