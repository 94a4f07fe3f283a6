"""What a comparison of speeds may claim, and the smallest slow-down that it would detect."""

from __future__ import annotations

import math
from typing import Literal

from scipy.optimize import brentq
from scipy.special import nctdtr, stdtrit

from kontext_fast.stats.intervals import CONFIDENCE, Estimate

SpeedClaim = Literal["faster", "slower", "no difference found", "cannot tell"]


def resolution(control: Estimate | None) -> float | None:
    """The smallest difference that can be claimed beside this A/A control, as a fraction: 0.02 is 2 %.

    It is the end of the control's interval that is further from 1. None without a control or without its interval.
    """
    if control is None or control.interval is None:
        return None
    return math.expm1(max(abs(math.log(bound)) for bound in control.interval))


def speed_claim(factor: Estimate, limit: float | None) -> SpeedClaim:
    """What may be said of `factor` (above 1 is faster) beside a control that resolves `limit`, from `resolution`.

    Without a limit nothing is called faster or slower: the same machine might say so of equals.
    """
    if factor.interval is None or limit is None:
        return "cannot tell"
    if not factor.excludes_one or abs(math.log(factor.value)) <= math.log1p(limit):
        return "no difference found"
    return "faster" if factor.value > 1 else "slower"


ALARM_RATE = 0.01
"""How often any of several equal configurations is called faster where no control ran, at most."""


def faster_without_control(factor: Estimate, compared: int) -> bool:
    """Whether `factor`, a geometric mean over rounds, is above 1 beyond chance, corrected for all that are `compared`.

    The bound is Bonferroni's, with the t-distribution of the rounds; without an interval, which takes three
    rounds, nothing passes.
    """
    if factor.interval is None or factor.value <= 1:
        return False
    levels = ((1 + CONFIDENCE) / 2, 1 - ALARM_RATE / compared)
    usual, corrected = (float(stdtrit(factor.n - 1, level)) for level in levels)
    half = math.log(factor.interval[1] / factor.value)
    return math.log(factor.value) > half * corrected / usual


USUAL_POWER = 0.8


def detectable_slowdown(standard_error: float, freedom: float, power: float = USUAL_POWER) -> float:
    """The slow-down, as a fraction, that is found with `power`.

    `standard_error` is that of the logarithm of the factor, above 0, and `freedom` its degrees of freedom.
    """
    noncentrality = brentq(lambda shift: _power(shift, freedom) - power, 0, 1000)
    return math.expm1(float(noncentrality) * standard_error)


def _power(noncentrality: float, freedom: float) -> float:
    critical = float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
    above = 1 - float(nctdtr(freedom, noncentrality, critical))
    below = float(nctdtr(freedom, noncentrality, -critical))
    # nctdtr gives NaN far out in its tails, where the answer is certain.
    return 1.0 if math.isnan(above) else above + (0.0 if math.isnan(below) else below)
