"""A solver fitted on a pipeline: levels by search on dense paths, coefficients by real evaluations in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kontext_fast.engine.solver import Solver, combined
from kontext_fast.tuning.fit import Array, Products, least_distances, search_levels, spread
from kontext_fast.tuning.parts import Part
from kontext_fast.verify.paths import DensePath, PathRunner

Floats = npt.NDArray[np.float32]

_NUMBERS_AT_ONCE = 2**26
"""Of eight bytes, in the vectors whose inner products are computed together."""


@dataclass(frozen=True)
class DensePart:
    """A batch of items with their dense paths."""

    part: Part
    states: Floats
    """[levels + 1, I, N, C]: the noise first, the end last."""
    target: Floats
    """[I, N, C] what the last row comes near to."""
    products: Products
    """Of the noise and all velocities of the path with the target."""


def products_of(vectors: Sequence[Tensor], target: Tensor) -> Products:
    """Inner products per item of `vectors` [I, N, C] each and `target` [I, N, C], in float64, a few items at a time."""
    together = max(1, _NUMBERS_AT_ONCE // (len(vectors) * target[0].numel()))
    parts = []
    for first in range(0, len(target), together):
        items = slice(first, first + together)
        matrix = torch.stack([vector[items].flatten(1) for vector in vectors], 1).double()
        end = target[items].flatten(1).double()
        products = matrix @ matrix.mT, (matrix @ end[..., None])[..., 0], end.square().sum(1)
        parts.append([product.cpu().numpy() for product in products])
    return Products(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def dense_arrays(path: DensePath, target: Tensor) -> dict[str, npt.NDArray[Any]]:
    """What is kept of a dense path: states and inner products, not velocities."""
    products = products_of([path.states[0], *path.velocities], target)
    return {
        "states": torch.stack(path.states).float().cpu().numpy(),
        "target": target.float().cpu().numpy(),
        "gram": products.gram,
        "cross": products.cross,
        "squares": products.squares,
    }


def candidates(parts: Sequence[DensePart], evaluations: int) -> list[list[int]]:
    """Choices of levels to fit, as indices of the dense path: the ends of the search from two starts, without twins."""
    together = Products(
        np.concatenate([part.products.gram for part in parts]),
        np.concatenate([part.products.cross for part in parts]),
        np.concatenate([part.products.squares for part in parts]),
    )
    levels = together.gram.shape[1] - 1
    starts = (spread(levels, evaluations), spread(levels, evaluations, density=1.5))
    found = [search_levels(together, start)[0] for start in starts]
    return [chosen for index, chosen in enumerate(found) if chosen not in found[:index]]


def fit_rows(
    runner: PathRunner, parts: Sequence[DensePart], levels: Sequence[float], chosen: Sequence[int]
) -> tuple[Solver, Array]:
    """Coefficients in order of the evaluations, each row towards the dense path's state at the next level.

    Gives the distances [I] that the last row leaves, too.

    Velocities are evaluated where the rule has arrived, as `runner`'s pipeline computes them, so that a rule makes up
    for its own earlier error and for the rounding of the model. `levels` are those of the dense path.
    """
    evaluations = len(chosen)
    device = runner.pipe._execution_device
    vectors = [[torch.from_numpy(np.array(part.states[0])).to(device)] for part in parts]
    states = [noise[0] for noise in vectors]
    rows: list[tuple[float, ...]] = []
    for index, level in enumerate(chosen):
        products = []
        for part, known, state in zip(parts, vectors, states, strict=True):
            place = (index, evaluations)
            known.append(runner.velocity(part.part.items, part.part.seeds, state, levels[level], place))
            end = part.target if index + 1 == evaluations else part.states[chosen[index + 1]]
            products.append(products_of(known, torch.from_numpy(np.array(end)).to(device)))
        fit = least_distances(
            Products(
                np.concatenate([product.gram for product in products]),
                np.concatenate([product.cross for product in products]),
                np.concatenate([product.squares for product in products]),
            )
        )
        rows.append(tuple(map(float, fit.coefficients)))
        states = [combined(rows[-1], known) for known in vectors]
    return Solver(noise_levels=tuple(levels[index] for index in chosen), coefficients=tuple(rows)), fit.distances
