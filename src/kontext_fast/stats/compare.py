"""How many times as fast one configuration is as another, from processes that ran in the same rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping

from kontext_fast.stats.summary import Estimate, mean_estimate


def ratio_interval(baseline_by_round: Mapping[int, float], other_by_round: Mapping[int, float]) -> Estimate | None:
    """The factor baseline / other: above 1 where the other one takes less time.

    Both map a round to the positive value of the process that ran in it. Pairing by round removes what a round's
    processes share, such as a warm room. The value is the geometric mean of the per-round ratios; the interval is the
    t-interval of their logarithms, None for a single round. `n` counts the rounds that both have.
    None where they share no round.
    """
    rounds = sorted(baseline_by_round.keys() & other_by_round.keys())
    if not rounds:
        return None
    logs = [math.log(baseline_by_round[round_]) - math.log(other_by_round[round_]) for round_ in rounds]
    of_logs = mean_estimate(logs)
    low_high = of_logs.interval
    return Estimate(
        value=math.exp(of_logs.value),
        interval=None if low_high is None else (math.exp(low_high[0]), math.exp(low_high[1])),
        n=of_logs.n,
    )
