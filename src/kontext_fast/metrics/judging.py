"""One look of the judge of the shapes world per output, shared by the metrics that ask it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kontext_fast.metrics.base import Case

if TYPE_CHECKING:
    from kontext_fast.items.shapes.judge import Judgement

_KEPT = 4096
_seen: dict[tuple[str, str], Judgement] = {}


def judgement(case: Case) -> Judgement:
    """What the judge says of the output of a case whose item is of the shapes world."""
    from kontext_fast.items.shapes.judge import judge

    key = (case.item.id, case.digest)
    if key not in _seen:
        if len(_seen) >= _KEPT:
            _seen.clear()
        _seen[key] = judge(case.output, case.item.shapes)  # type: ignore[attr-defined]
    return _seen[key]
