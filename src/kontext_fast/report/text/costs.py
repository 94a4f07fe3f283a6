"""How costs are worded wherever a report says them."""

from __future__ import annotations

import math

from kontext_fast.analysis import format as fmt
from kontext_fast.cost.analysis import GroupCost, Question
from kontext_fast.cost.crossover import Crossover
from kontext_fast.records.schema import BASELINE, CONTROL
from kontext_fast.stats.intervals import Estimate


def terms(cost: GroupCost, question: Question) -> str:
    """`10,000 images a day, billed by-use at runpod-h200, 2026-10-01, $3.59 per GPU-hour`, or why nothing is priced."""
    if cost.price is None:
        return cost.refusal or "not priced"
    return (
        f"{question.demand.images_per_day:,.0f} images a day, billed {question.billing} at "
        f"{cost.price.dated(question.today)}, {fmt.usd_rate(cost.price.usd_per_gpu_hour)} per GPU-hour"
    )


def saved(cost: GroupCost, preset: str) -> Estimate | str:
    """Dollars a month against baseline, or in a word why there is no such number."""
    if preset == CONTROL:
        return "control"
    of_preset = cost.of(preset)
    if of_preset is not None and of_preset.savings_per_month is not None:
        return of_preset.savings_per_month
    if cost.refusal:
        return "no price"
    if preset == BASELINE:
        return "reference"
    return "no baseline" if of_preset is not None and of_preset.cost is not None else "not priced"


def crossing(crossover: Crossover) -> str:
    """`always-on at A costs no more than by-use at A from 12,300 images a day on`."""
    volume = crossover.images_per_day
    when = "at no volume" if math.isinf(volume) else f"from {fmt.volume(volume)} on"
    return f"{crossover.cheaper} costs no more than {crossover.instead_of} {when}"
