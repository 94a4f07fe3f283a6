"""Which group a report leads with, where there are several."""

from __future__ import annotations

from collections.abc import Iterable

from kontext_fast.report.groups import Group
from kontext_fast.report.origin import kin

USUAL_STEPS = 28
"""Of FLUX.1-Kontext; of several step counts the nearest to it leads."""


def most_telling_first(found: Iterable[Group]) -> tuple[Group, ...]:
    """The group that a report leads with, then the others in their order.

    It is the most demanding one that compares presets as a user has them, with compiled code where he left it.
    """
    groups = tuple(found)
    if not groups:
        return ()
    leading = max(groups, key=telling)
    return (leading, *(group for group in groups if group is not leading))


def leading_groups(found: Iterable[Group]) -> tuple[Group, ...]:
    """Of each checkpoint and machine the group to lead with, the one that a report of them all leads with first."""
    return most_telling_first(most_telling_first(of)[0] for of in kin(found))


def telling(group: Group) -> tuple[bool, bool, tuple[int, int, int], int]:
    """A key that sorts the group that a report leads with last."""
    measured = {run.record.preset for run in group.runs}
    return (len(measured) > 1, group.compile_cache == "user", _demanding(group), len(measured))


def _demanding(group: Group) -> tuple[int, int, int]:
    """A key that sorts the most demanding group last: by parameters, pixels, and nearness to the usual steps."""
    parameters = group.checkpoint.transformer_parameters if group.checkpoint else 0
    workload = group.workload
    if workload is None:
        return (parameters, 0, 0)
    return (parameters, workload.width * workload.height, -abs(workload.steps - USUAL_STEPS))
