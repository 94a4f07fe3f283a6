"""How many times as fast one configuration is as another, from values of processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import stdtrit

from kontext_fast.stats.summary import CONFIDENCE, Estimate, mean_estimate


def ratio_interval(baseline_by_round: Mapping[int, float], other_by_round: Mapping[int, float]) -> Estimate | None:
    """The factor baseline / other: above 1 where the other one takes less time.

    Both map a round to the positive value of the process that ran in it. Pairing by round removes what a round's
    processes share, such as a warm room. The value is the geometric mean of the per-round ratios; the interval is the
    t-interval of their logarithms, None for a single round. `n` counts the rounds that both have.
    None where they share no round.
    """
    logs = log_ratios(baseline_by_round, other_by_round)
    return _exponential(mean_estimate(logs)) if logs else None


def log_ratios(baseline_by_round: Mapping[int, float], other_by_round: Mapping[int, float]) -> list[float]:
    """log(baseline / other) of every round that both have, in the order of the rounds."""
    rounds = sorted(baseline_by_round.keys() & other_by_round.keys())
    return [math.log(baseline_by_round[round_]) - math.log(other_by_round[round_]) for round_ in rounds]


def unpaired_ratio(before: Sequence[float], after: Sequence[float]) -> Estimate | None:
    """The factor after / before of two benchmarks that share no rounds; all values are positive.

    See `unpaired_log_ratio`; `n` is the smaller number of values.
    """
    return exponential_of(unpaired_log_ratio([math.log(v) for v in before], [math.log(v) for v in after]))


def unpaired_log_ratio(before: Sequence[float], after: Sequence[float]) -> Estimate | None:
    """mean(after) - mean(before) of logarithms with Welch's t-interval, which lets the two spread differently.

    None where one side is empty; the interval is None where one side has a single value.
    """
    if not before or not after:
        return None
    difference = float(np.mean(after) - np.mean(before))
    n = min(len(before), len(after))
    if n < 2:
        return Estimate(difference, None, n)
    error, freedom = welch_error(before, after)
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return Estimate(difference, (difference - half, difference + half), n)


def welch_error(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Standard error of mean(after) - mean(before), and its degrees of freedom. Each side has at least two values."""
    shares = [float(np.var(values, ddof=1)) / len(values) for values in (before, after)]
    variance = sum(shares)
    if variance == 0:
        return 0.0, float(min(len(before), len(after)) - 1)
    spread = sum(share**2 / (len(values) - 1) for share, values in zip(shares, (before, after), strict=True))
    return math.sqrt(variance), variance**2 / spread


def exponential_of(of_logs: Estimate | None) -> Estimate | None:
    """The factor whose logarithm was estimated."""
    return None if of_logs is None else _exponential(of_logs)


def _exponential(of_logs: Estimate) -> Estimate:
    low_high = of_logs.interval
    return Estimate(
        value=math.exp(of_logs.value),
        interval=None if low_high is None else (math.exp(low_high[0]), math.exp(low_high[1])),
        n=of_logs.n,
    )
