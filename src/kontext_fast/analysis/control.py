"""The A/A control of a benchmark: what it says of baseline against itself limits what it may say of others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kontext_fast.analysis.groups import Group
from kontext_fast.analysis.rows import Row, headline
from kontext_fast.records.schema import CONTROL
from kontext_fast.stats.claims import resolution
from kontext_fast.stats.intervals import Estimate


def control_factor(rows: Sequence[Row]) -> Estimate | None:
    """Baseline against itself; None where the control was not run."""
    return next((row.factor for row in rows if row.preset == CONTROL), None)


def smallest_claim(group: Group, of: Iterable[Group]) -> float | None:
    """The smallest difference, as a fraction, that may be claimed in `group`.

    It comes from the group's own control, else from the widest one among the groups `of` the same checkpoint, machine
    and compile cache: only the centre of a suite has one. None without any.
    """
    own = resolution(control_factor(headline(group)))
    if own is not None:
        return own
    kin = (group.checkpoint, group.machine, group.compile_cache)
    limits = [
        limit
        for other in of
        if (other.checkpoint, other.machine, other.compile_cache) == kin
        and (limit := resolution(control_factor(headline(other)))) is not None
    ]
    return max(limits, default=None)
