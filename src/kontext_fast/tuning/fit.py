"""Which noise levels a rule has, and its coefficients: pure numbers, from inner products per item.

Shapes: I items; K vectors per item (the noise, then velocities). `gram` [I, K, K] are the inner products of these,
`cross` [I, K] those with the state to come near to, `squares` [I] that state's with itself.

What is minimized is the mean over items of the relative distance |target - sum of b[k] vector[k]| / |target|, by
least squares whose weights are the inverse of the last distances (iteratively reweighted least squares). Plain least
squares minimizes the mean of the squares, in which a few items whose path is chaotic decide for all others.
Relatives: bespoke non-stationary solvers (Shaul et al., arXiv 2403.01329), which train such numbers by gradients, and
Optimal Steps (Pei et al., arXiv 2503.21774), which searches times alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_RIDGE = 1e-7
_LEAST_GAP = 2
"""Of two chosen levels, on the dense path's grid: between neighbours there is nothing new to see."""
_STRIDES = (8, 4, 2, 1)
_SWEEPS = 6
_SEARCH_ITERATIONS, _FIT_ITERATIONS = 4, 30


@dataclass(frozen=True)
class Products:
    """Inner products of I items; see the module."""

    gram: Array
    cross: Array
    squares: Array

    def of(self, vectors: Sequence[int]) -> Products:
        """Those of some vectors alone."""
        chosen = list(vectors)
        return Products(self.gram[:, chosen][:, :, chosen], self.cross[:, chosen], self.squares)


@dataclass(frozen=True)
class Fit:
    """Coefficients [K], and the relative distance that they leave per item [I]."""

    coefficients: Array
    distances: Array

    @property
    def mean(self) -> float:
        return float(self.distances.mean())


def least_distances(products: Products, iterations: int = _FIT_ITERATIONS) -> Fit:
    """The coefficients with the smallest mean of the items' relative distances, of as many attempts as `iterations`."""
    scale = np.sqrt(products.squares)
    weights = 1 / scale**2
    best: Fit | None = None
    for _ in range(iterations):
        matrix = np.einsum("i,ikl->kl", weights, products.gram)
        matrix = matrix + _RIDGE * np.trace(matrix) / len(matrix) * np.eye(len(matrix))
        coefficients = np.linalg.solve(matrix, weights @ products.cross)
        fit = Fit(coefficients, distances(products, coefficients))
        if best is None or fit.mean < best.mean:
            best = fit
        floor = 0.1 * float(np.median(fit.distances)) + 1e-6
        weights = 1 / (np.maximum(fit.distances, floor) * scale**2)
    assert best is not None
    return best


def distances(products: Products, coefficients: Array) -> Array:
    """[I] the relative distances that `coefficients` [K] leave."""
    quadratic = np.einsum("k,ikl,l->i", coefficients, products.gram, coefficients)
    squared = products.squares - 2 * products.cross @ coefficients + quadratic
    return np.asarray(np.sqrt(np.maximum(squared, 1e-14) / products.squares))


def spread(levels: int, evaluations: int, *, density: float = 1.0) -> list[int]:
    """`evaluations` indices of `levels` ones, the first at 0; above 1, `density` puts more of them at both ends."""
    places = np.linspace(0, 1, evaluations)
    bent = np.where(places < 0.5, (2 * places) ** density / 2, 1 - (2 * (1 - places)) ** density / 2)
    last = levels - _LEAST_GAP
    chosen = [round(float(place) * last) for place in bent]
    for index in range(1, evaluations):
        chosen[index] = max(chosen[index], chosen[index - 1] + _LEAST_GAP)
    for index in range(evaluations - 1, 0, -1):
        chosen[index] = min(chosen[index], levels - 1 - _LEAST_GAP * (evaluations - 1 - index))
    return chosen


def search_levels(products: Products, start: Sequence[int]) -> tuple[list[int], float]:
    """The levels whose velocities, with the noise, come nearest to the final state, and how near in the mean.

    `products` are those of the noise and the velocities of a dense path at every level [K = 1 + levels]; `start` are
    indices of levels, of which the first one stays. Coordinate descent: each level moves by strides of 8, 4, 2 and 1,
    at least two apart from its neighbours, as long as that helps. The order of all moves is fixed, so the same
    products give the same levels.
    """
    levels = products.gram.shape[1] - 1

    def cost(chosen: Sequence[int]) -> float:
        return least_distances(products.of([0, *(1 + index for index in chosen)]), _SEARCH_ITERATIONS).mean

    best, lowest = list(start), cost(start)
    for stride in _STRIDES:
        for _ in range(_SWEEPS):
            before = lowest
            for place in range(1, len(best)):
                below = best[place - 1] + _LEAST_GAP
                above = best[place + 1] - _LEAST_GAP if place + 1 < len(best) else levels - 1
                for candidate in range(best[place] - 3 * stride, best[place] + 3 * stride + 1, stride):
                    if candidate == best[place] or not below <= candidate <= above:
                        continue
                    moved = [*best[:place], candidate, *best[place + 1 :]]
                    if (value := cost(moved)) < lowest - 1e-7:
                        best, lowest = moved, value
            if lowest == before:
                break
    return best, lowest
