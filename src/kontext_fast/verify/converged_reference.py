"""The converged reference: where the paths of items lead, computed finely and independently of any fit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kontext_fast.datasets.base import Item
from kontext_fast.verify.converged import (
    DISTANCE,
    DISTANCE_IN_FLOAT32,
    REFERENCE_ERROR,
    Array,
    relative_distances,
)
from kontext_fast.verify.paths import PathRunner

REFERENCE_STEPS = 224
"""Of the finer of the two paths that a reference is extrapolated from; the other one has half as many."""
_STORED = "{item}-{seed}.npz"


@dataclass(frozen=True)
class Reference:
    """Where the paths of some items converge."""

    target: npt.NDArray[np.float32]
    """[I, N, C] final latents."""
    error: Array
    """[I] an estimate of its own relative distance to the limit."""


@dataclass(frozen=True)
class Baseline:
    """What Euler's method with the steps of a call gives in float32 for the items of a reference."""

    steps: int
    latents: npt.NDArray[np.float32]
    """[I, N, C] final ones."""


def reference_evaluations(baseline_steps: int, steps: int = REFERENCE_STEPS) -> int:
    """Of one item, besides those of its baseline."""
    return steps + steps // 2 + (0 if _shows_the_error(baseline_steps, steps) else steps // 4)


def converged_reference(
    runner: PathRunner,
    items: Sequence[Item],
    seeds: Sequence[int],
    baseline: Baseline,
    steps: int = REFERENCE_STEPS,
) -> Reference:
    """Richardson's extrapolation of paths of `steps` (a multiple of 4) and half as many, with latents in float32.

    Euler's error is a / steps + b / steps^2. Extrapolating from n and m steps leaves b / (n m), so what the pair of the
    coarser path and a still coarser one gives otherwise shows b, and with it the reference's own error. The coarsest
    path is baseline's own where that has about a quarter of the steps.
    """
    finest, half = (_euler(runner, items, seeds, steps // part) for part in (1, 2))
    coarse = baseline
    if not _shows_the_error(baseline.steps, steps):
        coarse = Baseline(steps // 4, _euler(runner, items, seeds, steps // 4))
    target = 2 * finest - half
    other = half + (half - coarse.latents) * (coarse.steps / (steps // 2 - coarse.steps))
    return Reference(target, relative_distances(other, target) / (steps / coarse.steps - 1))


def _shows_the_error(baseline_steps: int, steps: int) -> bool:
    return steps // 8 <= baseline_steps <= steps // 4


def _euler(runner: PathRunner, items: Sequence[Item], seeds: Sequence[int], steps: int) -> npt.NDArray[np.float32]:
    return np.asarray(runner.euler(items, seeds, steps).float().cpu().numpy())


class ReferenceStore:
    """The references of some items of a verification, a file each, so that a stop loses one call at most."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "converged"

    def __contains__(self, key: tuple[str, int]) -> bool:
        return self._file(*key).is_file()

    def add(self, runner: PathRunner, items: Sequence[Item], seed: int, steps: int) -> None:
        """Compute and keep those of `items`, of one size, with the noise of `seed`; `steps` are baseline's."""
        seeds = [seed] * len(items)
        plain = _euler(runner, items, seeds, steps)
        reference = converged_reference(runner, items, seeds, Baseline(steps, plain))
        exact = relative_distances(plain, reference.target)
        self._folder.mkdir(parents=True, exist_ok=True)
        for index, item in enumerate(items):
            file = self._file(item.id, seed)
            unfinished = file.with_name(f".{file.name}")
            with unfinished.open("wb") as stream:
                np.savez(stream, target=reference.target[index], error=reference.error[index], exact=exact[index])
            os.replace(unfinished, file)

    def distances(self, key: tuple[str, int], latents_file: Path, vae: Any) -> dict[str, float]:
        """The scores of one output, by name: its latents (C, height, width) are those right before decoding."""
        with np.load(self._file(*key)) as stored:
            target, error, exact = (stored[name] for name in ("target", "error", "exact"))
        latents = (np.load(latents_file).astype(np.float32) - vae["shift_factor"]) * vae["scaling_factor"]
        return {
            DISTANCE: float(relative_distances(packed(latents)[None], target[None])[0]),
            DISTANCE_IN_FLOAT32: float(exact),
            REFERENCE_ERROR: float(error),
        }

    def _file(self, item: str, seed: int) -> Path:
        return self._folder / _STORED.format(item=item, seed=seed)


def packed(latents: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[C, height, width] as the transformer has them, [height * width / 4, 4 * C]."""
    channels, height, width = latents.shape
    squares = latents.reshape(channels, height // 2, 2, width // 2, 2).transpose(1, 3, 0, 2, 4)
    return np.ascontiguousarray(squares.reshape(height * width // 4, channels * 4))
