"""What comparing with the floor output by output, in place of means of seeds, tells of changes near the limit.

`python -m research.paired_outputs --records FOLDER --out FILE` takes the distances of stored presets and of the floor
on the control items of a verification on `tiny`, moves each preset to a multiple of the floor, and counts in draws of
items how often the lower bound of the mean is beyond the limit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kontext_fast.metrics.latent_error import LatentError
from kontext_fast.records.store import ResultStore, write_atomically
from kontext_fast.stats.bounds import Array, ratio_bounds
from kontext_fast.verify.analysis import ArmScores
from kontext_fast.verify.controls import OTHER_PRECISION
from kontext_fast.verify.margins import read_margins

COUNTS = (16, 26, 50)
SCALES = (1.0, 1.2, 1.3, 1.4)
"""Of the limit of the floor."""


def distances_of_controls(arms: ArmScores, preset: str) -> tuple[Array, Array]:
    """Of a preset and of the floor, control items x seeds."""
    floor, distances = arms.distances(LatentError, OTHER_PRECISION), arms.distances(LatentError, preset)
    shared = sorted(floor.keys() & distances.keys())
    return np.array([distances[item] for item in shared]), np.array([floor[item] for item in shared])


def spread(above: Array, below: Array) -> float:
    """The standard deviation of the logarithm of the items' ratios."""
    return float(np.log(above / below).mean(-1).std(ddof=1))


def rate(above: Array, below: Array, n: int, scale: float, simulations: int) -> float:
    """How often the lower bound is beyond the limit in `n` items whose mean ratio is `scale` times the limit."""
    margins, rng = read_margins(), np.random.default_rng(0)
    all_items = ratio_bounds(list(above), list(below), margins.confidence).value
    moved = above * (scale * margins.floor.ratio / all_items)
    told = 0
    for _ in range(simulations):
        drawn = rng.integers(0, len(moved), n)
        told += ratio_bounds(list(moved[drawn]), list(below[drawn]), margins.confidence).lower > margins.floor.ratio
    return told / simulations


def rows(arms: ArmScores, simulations: int) -> list[dict[str, Any]]:
    """For every preset, number of items and multiple of the limit: by outputs and by means of seeds."""
    found = []
    for preset in (record.preset for record in arms.presets):
        above, below = distances_of_controls(arms, preset)
        sides = {"outputs": (above, below), "means": (above.mean(-1, keepdims=True), below.mean(-1, keepdims=True))}
        spreads = {f"spread of {name}": round(spread(*side), 3) for name, side in sides.items()}
        for n in COUNTS:
            for scale in SCALES:
                told = {name: rate(*side, n, scale, simulations) for name, side in sides.items()}
                found.append({"preset": preset, "items": n, "scale": scale, **told, **spreads})
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--simulations", type=int, default=500)
    options = parser.parse_args(arguments)
    found = rows(ArmScores(ResultStore(options.records).load().records), options.simulations)
    content = {"simulations": options.simulations, "rates": found}
    write_atomically(options.out, json.dumps(content, indent=1).encode())
    for row in found:
        print(row)


if __name__ == "__main__":
    main()
