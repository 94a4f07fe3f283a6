"""How often outputs are accepted, with the item as the unit of replication.

Several outputs of one item are alike, so an item counts once, with the fraction of its outputs that were accepted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.special import ndtri

from kontext_fast.stats.summary import CONFIDENCE, Estimate

MIN_ITEMS = 30
"""Below this many items a difference of acceptance gets no interval."""

_Z = float(ndtri((1 + CONFIDENCE) / 2))


def acceptance(fraction_by_item: Mapping[str, float]) -> Estimate | None:
    """Mean accepted fraction over items with its Wilson interval; None where there is no item.

    With several outputs per item the interval is wider than needed, never too narrow: each item is one trial.
    """
    if not fraction_by_item:
        return None
    return wilson(math.fsum(fraction_by_item.values()), len(fraction_by_item))


def wilson(accepted: float, n: int) -> Estimate:
    """Wilson's score interval of a proportion; `accepted` of `n` trials, `n` at least 1."""
    if n < 1 or not 0 <= accepted <= n:
        raise ValueError(f"{accepted} of {n} is not a proportion")
    p = accepted / n
    scale = 1 + _Z**2 / n
    center = (p + _Z**2 / (2 * n)) / scale
    half = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2)) / scale
    return Estimate(p, (max(0.0, center - half), min(1.0, center + half)), n)


def paired_difference(baseline_by_item: Mapping[str, float], other_by_item: Mapping[str, float]) -> Estimate | None:
    """Acceptance of other minus baseline, in -1 to 1, over the items that both have; None where there are none.

    The interval is None below `MIN_ITEMS` items. It is Bonett and Price's adjusted Wald interval for paired
    proportions: one made-up item for and one against, which keeps it from collapsing when all items agree.
    """
    items = sorted(baseline_by_item.keys() & other_by_item.keys())
    if not items:
        return None
    differences = [other_by_item[item] - baseline_by_item[item] for item in items]
    value = float(np.mean(differences))
    if len(items) < MIN_ITEMS:
        return Estimate(value, None, len(items))
    adjusted = np.array([*differences, 1.0, -1.0])
    center = float(adjusted.mean())
    half = _Z * float(adjusted.std()) / math.sqrt(len(adjusted))
    return Estimate(value, (max(-1.0, center - half), min(1.0, center + half)), len(items))
