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
from kontext_fast.pipeline.edit import MAX_STEPS
from kontext_fast.verify.converged import (
    DISTANCE,
    DISTANCE_IN_FLOAT32,
    REFERENCE_ERROR,
    Array,
    relative_distances,
)
from kontext_fast.verify.paths import PathRunner

REFERENCE_STEPS = 112
"""Of the finer of the two paths behind a reference; the other one has half as many."""
_STORED = "{item}-{seed}.npz"


@dataclass(frozen=True)
class Reference:
    """Where the paths of some items converge."""

    target: npt.NDArray[np.float32]
    """[I, N, C] final latents."""
    error: Array
    """[I] an estimate of its own relative distance to the limit."""


def reference_evaluations(steps: int = REFERENCE_STEPS) -> int:
    """Of one item."""
    return steps + steps // 2


def converged_reference(
    runner: PathRunner, items: Sequence[Item], seeds: Sequence[int], steps: int = REFERENCE_STEPS
) -> Reference:
    """The end of a path of `steps` (an even number) of third order in float32; half as many show its error.

    Steps shorten towards both ends, where velocities change most. On `tiny` that comes nearer than Richardson's
    extrapolation of 112 and 224 steps of a call, with half of the evaluations (docs/tuning.md). What halving the steps
    changes is several times the error that is left where the path is smooth, and sqrt(3) times where it is rounding,
    which averages out; the smaller factor is taken.
    """
    fine, half = (_end(runner, items, seeds, count) for count in (steps, steps // 2))
    return Reference(fine, relative_distances(half, fine) / np.sqrt(3))


def _end(runner: PathRunner, items: Sequence[Item], seeds: Sequence[int], steps: int) -> npt.NDArray[np.float32]:
    levels = runner.levels(items, MAX_STEPS)
    place = np.linspace(0, 1, steps + 1)
    passed = np.where(place < 0.5, 2 * place**2, 1 - 2 * (1 - place) ** 2)
    chosen = np.interp(passed, np.linspace(0, 1, len(levels)), levels)
    end = runner.dense(items, seeds, [float(level) for level in chosen], keep=False).states[-1]
    return np.asarray(end.float().cpu().numpy())


class ReferenceStore:
    """The references of some items of a verification, a file each, so that a stop loses one call at most."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "converged"

    def __contains__(self, key: tuple[str, int]) -> bool:
        return self._file(*key).is_file()

    def add(self, runner: PathRunner, items: Sequence[Item], seed: int) -> None:
        """Compute and keep those of `items`, of one size, with the noise of `seed`; `runner` has baseline's steps."""
        seeds = [seed] * len(items)
        plain = np.asarray(runner.euler(items, seeds, runner.steps).float().cpu().numpy())
        reference = converged_reference(runner, items, seeds)
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
