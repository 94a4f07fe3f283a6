"""How often a preset is called a loss by the few items of another way of use, by chance and by right.

`python -m research.few_items --records FOLDER --out FILE` draws items from a stored verification on `tiny`, whose
metrics agree as those of real outputs do, and moves every metric so that its median and its 90th percentile are exactly
at the limits of seed noise, or at a multiple of them, in both ways of use. The rule of the package decides each draw,
beside the rule before it, which took each bound at 95 % alone. The same is done for what declares rounding only, with
ratios to the floor.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kontext_fast.metrics.base import discover
from kontext_fast.records.schema import Condition
from kontext_fast.records.store import ResultStore, write_atomically
from kontext_fast.stats.bounds import Array, quantile_bounds, ratio_bounds
from kontext_fast.verify.analysis import ArmScores
from kontext_fast.verify.comparisons import FidelityDistances, Outcome, compare_with_seed_noise, seed_noise_ratios
from kontext_fast.verify.conditions import AMPLIFICATION, CONDITIONS, ConditionEvidence, loss_in_condition
from kontext_fast.verify.margins import Margins, read_margins

COUNTS = (8, 16, 32)
MAIN_COUNTS = (30, 100)
SCALES = (0.7, 1.0, 1.5, 3.0)
"""Of the limits."""
FLOOR_SPREAD = 0.6
"""Standard deviation of the logarithm of an item's distance over the floor: 0.4 to 0.8 of presets on an H100."""

Logs = Array
"""Logarithms of distances over noise: metrics x items."""


def logs_at_limits(folder: Path, preset: str, margins: Margins) -> Logs:
    """Those of a preset in stored records, moved and stretched so that each metric is exactly at both limits."""
    arms = ArmScores(ResultStore(folder).load().records)
    metrics = discover()
    stored = [
        np.log(np.maximum(seed_noise_ratios(arms.fidelity(metrics[name], preset)), 1e-4))
        for name in margins.seed_noise.metrics
    ]
    return np.array([_at_limits(values, margins) for values in stored])


def _at_limits(values: Array, margins: Margins) -> Array:
    median, p90 = np.quantile(values, [0.5, 0.9])
    low, high = math.log(margins.seed_noise.median), math.log(margins.seed_noise.p90)
    moved: Array = (values - median) / (p90 - median) * (high - low) + low
    return moved


def is_loss(logs: Sequence[Logs], margins: Margins) -> bool:
    """Whether the rule calls a loss what these items show, one array of them for each way of use."""
    return any(
        loss_in_condition(ConditionEvidence(name, False, _distances(of, margins)), margins, rounding_only=False)
        is not None
        for name, of in zip(CONDITIONS, logs, strict=True)
    )


def was_loss(logs: Sequence[Logs], margins: Margins) -> bool:
    """As `is_loss`, by each bound alone."""
    limits = {0.5: margins.seed_noise.median, 0.9: margins.seed_noise.p90}
    return any(
        quantile_bounds(np.exp(metric), quantile, margins.confidence)[1] > limit
        for of in logs
        for metric in of
        for quantile, limit in limits.items()
    )


def is_loss_of_all(logs: Sequence[Logs], margins: Margins) -> bool:
    """Whether the usual outputs, the only ones here, are a loss by seed noise."""
    found = [compare_with_seed_noise(distances, margins) for distances in _distances(logs[0], margins)]
    return any(noise is not None and noise.outcome is Outcome.FAILED for noise in found)


def is_loss_of_rounding(logs: Sequence[Logs], margins: Margins) -> bool:
    return any(
        loss_in_condition(_rounded(name, of, margins), margins, rounding_only=True) is not None
        for name, of in zip(CONDITIONS, logs, strict=True)
    )


def was_loss_of_rounding(logs: Sequence[Logs], margins: Margins) -> bool:
    """By each bound alone; the rules of what differs at all and of the tail find nothing in these draws."""
    return any(
        max(
            ratio_bounds(list(np.exp(metric)), [1.0] * len(metric), margins.confidence).lower,
            quantile_bounds(np.exp(metric), 0.5, margins.confidence)[1],
        )
        > margins.floor.ratio
        for of in logs
        for metric in of
    )


def _distances(logs: Logs, margins: Margins) -> tuple[FidelityDistances, ...]:
    names = [f"{index:04d}" for index in range(logs.shape[1])]
    return tuple(
        FidelityDistances(
            metric,
            to_baseline={name: [float(value)] for name, value in zip(names, np.exp(of), strict=True)},
            floors={},
            between_seeds={name: [1.0] for name in names},
        )
        for metric, of in zip(margins.seed_noise.metrics, logs, strict=True)
    )


def _rounded(name: Condition, logs: Logs, margins: Margins) -> ConditionEvidence:
    """Distances over a floor of 1, where the condition takes rounding no farther."""
    allowed = 1 / AMPLIFICATION[name]
    return ConditionEvidence(
        name,
        identical=False,
        fidelity=tuple(
            replace(of, floors={"floor": {item: [allowed] for item in of.to_baseline}}, between_seeds={})
            for of in _distances(logs, margins)
        ),
    )


def rate(
    rule: Callable[[Sequence[Logs], Margins], bool],
    draw: Callable[[np.random.Generator], Sequence[Logs]],
    margins: Margins,
    simulations: int,
) -> float:
    """How often `rule` calls a draw a loss."""
    rng = np.random.default_rng(0)
    return sum(rule(draw(rng), margins) for _ in range(simulations)) / simulations


def noise_draw(logs: Logs, n: int, scale: float, ways: int) -> Callable[[np.random.Generator], Sequence[Logs]]:
    def draw(rng: np.random.Generator) -> Sequence[Logs]:
        return [logs[:, rng.integers(0, logs.shape[1], n)] + math.log(scale) for _ in range(ways)]

    return draw


def floor_draw(n: int, scale: float, margins: Margins) -> Callable[[np.random.Generator], Sequence[Logs]]:
    """Metrics that agree for the most part, as far as `scale` times the limit of the floor."""

    def draw(rng: np.random.Generator) -> Sequence[Logs]:
        ways = []
        for _ in CONDITIONS:
            shared = rng.normal(0, FLOOR_SPREAD, n)
            own = rng.normal(0, FLOOR_SPREAD / 3, (len(margins.seed_noise.metrics), n))
            ways.append(math.log(scale * margins.floor.ratio) + shared + own)
        return ways

    return draw


def rates(logs: Logs, margins: Margins, simulations: int) -> list[dict[str, Any]]:
    """One row for each rule, number of items and multiple of the limits."""
    rows = []
    for scale in SCALES:
        for n in COUNTS:
            noise, floor = noise_draw(logs, n, scale, len(CONDITIONS)), floor_draw(n, scale, margins)
            for what, draw, now, before in (
                ("seed noise, two ways of use", noise, is_loss, was_loss),
                ("floor, two ways of use", floor, is_loss_of_rounding, was_loss_of_rounding),
            ):
                found = {
                    "now": rate(now, draw, margins, simulations),
                    "before": rate(before, draw, margins, simulations),
                }
                rows.append({"what": what, "items": n, "scale": scale, **found})
        for n in MAIN_COUNTS:
            draw = noise_draw(logs, n, scale, 1)
            found = {
                "now": rate(is_loss_of_all, draw, margins, simulations),
                "before": rate(was_loss, draw, margins, simulations),
            }
            rows.append({"what": "seed noise, all items", "items": n, "scale": scale, **found})
    return sorted(rows, key=lambda row: (row["what"], row["items"], row["scale"]))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", default="turbo")
    parser.add_argument("--simulations", type=int, default=400)
    options = parser.parse_args(arguments)
    margins = read_margins()
    rows = rates(logs_at_limits(options.records, options.preset, margins), margins, options.simulations)
    content = {"preset": options.preset, "simulations": options.simulations, "rates": rows}
    write_atomically(options.out, json.dumps(content, indent=1).encode())
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
