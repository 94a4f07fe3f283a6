"""What a comparison could have found: a benchmark that finds nothing says something only beside its power."""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import nctdtr, stdtrit

from kontext_fast.stats.summary import CONFIDENCE

USUAL_POWER = 0.8


def paired_power(effect: float, spread: float, rounds: int) -> float:
    """The chance that a true change by the fraction `effect` is found in `rounds` rounds.

    `spread` is the standard deviation of the logarithm of a round's ratio. Found means that the two-sided t-interval
    excludes 1. Raises ValueError for fewer than two rounds or no spread.
    """
    if rounds < 2 or spread <= 0:
        raise ValueError("power needs at least two rounds and a spread above 0")
    return _power(abs(math.log1p(effect)) / (spread / math.sqrt(rounds)), rounds - 1)


def smallest_found(standard_error: float, freedom: float, power: float = USUAL_POWER) -> float:
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
