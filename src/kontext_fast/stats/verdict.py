"""When one configuration may be called faster than another.

Two conditions, both needed: the interval of the factor excludes 1, and the factor is further from 1 than the A/A
control, which compares baseline with itself, could be. The first alone is wrong in one of twenty comparisons of equals,
and says nothing of whatever a benchmark does to equals on one machine.
"""

from __future__ import annotations

import math
from typing import Literal

from kontext_fast.stats.summary import Estimate

Verdict = Literal["faster", "slower", "no difference found", "cannot tell"]


def resolution(control: Estimate | None) -> float | None:
    """The smallest difference that can be claimed beside this A/A control, as a fraction: 0.02 is 2 %.

    It is the end of the control's interval that is further from 1. None without a control or without its interval.
    """
    if control is None or control.interval is None:
        return None
    return math.expm1(max(abs(math.log(bound)) for bound in control.interval))


def speed_verdict(factor: Estimate, limit: float | None) -> Verdict:
    """What may be said of `factor` (above 1 is faster) beside a control that resolves `limit`, from `resolution`.

    Without a limit nothing is called faster or slower: the same machine might say so of equals.
    """
    if factor.interval is None or limit is None:
        return "cannot tell"
    if not factor.excludes_one or abs(math.log(factor.value)) <= math.log1p(limit):
        return "no difference found"
    return "faster" if factor.value > 1 else "slower"
