"""Runs of a pipeline from noise to final latents, in float32, and the parts of runs that a fit needs.

Shapes: I items; N image tokens of C channels; latents and velocities are [I, N, C]. Everything goes through
`pipeline.edit`, so the model is called as an edit calls it: its precision, its engine, its rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from kontext_fast.datasets.base import Item
from kontext_fast.engine.solver import Solver, SolverRun, combined, polynomial_weights
from kontext_fast.optimizations.call_tracking import PipelineCall
from kontext_fast.optimizations.solver_scheduler import Run, run_solver
from kontext_fast.pipeline.edit import EditRequest, final_latents
from kontext_fast.pipeline.sizes import Size

Progress = Callable[[int], None]
"""Called with evaluations of single items, after each batch."""


class EulerPath:
    """Euler's method over `levels` [steps + 1] in float32."""

    def __init__(self, levels: Sequence[float]) -> None:
        self.noise_levels = tuple(levels[:-1])
        self._lengths = [after - before for before, after in pairwise(levels)]
        self._done = 0
        self.state: Tensor | None = None
        """The latest one."""

    def advance(self, latents: Tensor, velocity: Tensor) -> Tensor:
        """The latents after a step; `latents` is read at the first one only."""
        state = latents.float() if self.state is None else self.state
        self.state = state + self._lengths[self._done] * velocity.float()
        self._done += 1
        return self.state


class DensePath:
    """The Adams-Bashforth method of some order over `levels` [steps + 1] in float32; its first steps have lower ones.

    It needs no more evaluations than Euler's method. With 112 steps of third order its end is 2.7 times nearer to where
    the paths of `tiny` converge; a higher order gains little there.
    """

    def __init__(self, levels: Sequence[float], order: int, *, keep: bool) -> None:
        self._levels = tuple(levels)
        self.noise_levels = self._levels[:-1]
        self._order, self._keep = order, keep
        self._done = 0
        self.states: list[Tensor] = []
        """[steps + 1] where they are kept, else the latest one alone."""
        self.velocities: list[Tensor] = []
        """[steps] where they are kept, else the latest ones, as many as the order."""

    def advance(self, latents: Tensor, velocity: Tensor) -> Tensor:
        """The latents after a step; `latents` is read at the first one only."""
        state = self.states[-1] if self.states else latents.float()
        velocities = [*self.velocities, velocity.float()]
        self.velocities = velocities if self._keep else velocities[-self._order :]
        nodes = self._levels[max(0, self._done + 1 - self._order) : self._done + 1]
        weights = polynomial_weights(nodes, self._levels[self._done], self._levels[self._done + 1])
        following = combined((1.0, *weights), (state, *self.velocities[-len(nodes) :]))
        self._done += 1
        self.states = [*(self.states or [state]), following] if self._keep else [following]
        return following


class _Evaluation:
    """One evaluation at a noise level, whose velocity is kept."""

    velocity: Tensor

    def __init__(self, level: float) -> None:
        self.noise_levels = (level,)

    def advance(self, latents: Tensor, velocity: Tensor) -> Tensor:
        self.velocity = velocity.float()
        return latents.float()


class _RecordedRun(SolverRun):
    """A rule whose final latents are kept in float32."""

    final: Tensor

    def advance(self, latents: Tensor, velocity: Tensor) -> Tensor:
        self.final = super().advance(latents, velocity)
        return self.final


class PathRunner:
    """Runs batches of items on one pipeline until `close`; between runs the pipeline is the user's own."""

    _run_of: Callable[[Sequence[float]], Run]
    """Of the call that is under way."""

    def __init__(
        self, pipe: Any, *, steps: int, guidance: float, size: Size | None, on_progress: Progress, **more: Any
    ) -> None:
        """`steps`: what a call asks for, whose noise levels a baseline has; `more`: other fields of every EditRequest.

        Raises what `run_solver` raises.
        """
        self.pipe, self._more = pipe, more
        self.steps, self._guidance, self._size = steps, guidance, size
        self._on_progress = on_progress
        self._place: tuple[int, int] | None = None
        self._undo = ExitStack()
        calls = run_solver(pipe, lambda sigmas: self._run_of(sigmas), self._undo)

        def place(call: PipelineCall) -> None:
            call.place = self._place

        calls.on_begin(place, self._undo)

    def close(self) -> None:
        """Give the pipeline its own scheduler back."""
        self._undo.close()

    def levels(self, items: Sequence[Item], steps: int) -> list[float]:
        """[steps + 1] the noise levels of a call for these items with that many steps, and 0."""
        seen: list[float] = []

        def look(sigmas: Sequence[float]) -> Run:
            seen.extend(sigmas)
            return _Evaluation(sigmas[0])

        self._call(items[:1], (0,), look, steps=steps)
        return seen

    def euler(self, items: Sequence[Item], seeds: Sequence[int], steps: int) -> Tensor:
        """The final latents of Euler's method at the noise levels that the pipeline itself has for `steps`."""
        path: list[EulerPath] = []

        def begin(sigmas: Sequence[float]) -> Run:
            path.append(EulerPath(sigmas))
            return path[0]

        self._call(items, seeds, begin, steps=steps)
        assert path[0].state is not None
        return path[0].state

    def dense(
        self, items: Sequence[Item], seeds: Sequence[int], levels: Sequence[float], *, keep: bool = True
    ) -> DensePath:
        """The path of third order over `levels` [steps + 1], whole or its end alone."""
        path = DensePath(levels, 3, keep=keep)
        self._call(items, seeds, lambda _: path)
        return path

    def run(self, items: Sequence[Item], seeds: Sequence[int], rule: Callable[[Sequence[float]], Solver]) -> Tensor:
        """The final latents of a rule, which may depend on the noise levels of a call for `steps` and 0."""
        run: list[_RecordedRun] = []

        def begin(sigmas: Sequence[float]) -> Run:
            run.append(_RecordedRun(rule(sigmas)))
            return run[0]

        self._call(items, seeds, begin)
        return run[0].final

    def velocity(
        self, items: Sequence[Item], seeds: Sequence[int], states: Tensor, level: float, place: tuple[int, int]
    ) -> Tensor:
        """The velocity at `states` and a noise level, as evaluation `place` (which one, of how many) of a run."""
        evaluation = _Evaluation(level)
        self._place = place
        try:
            self._call(items, seeds, lambda _: evaluation, start=states)
        finally:
            self._place = None
        return evaluation.velocity

    def _call(
        self,
        items: Sequence[Item],
        seeds: Sequence[int],
        run_of: Callable[[Sequence[float]], Run],
        *,
        steps: int | None = None,
        start: Tensor | None = None,
    ) -> None:
        runs: list[Run] = []

        def begin(sigmas: Sequence[float]) -> Run:
            runs.append(run_of(sigmas))
            return runs[0]

        self._run_of = begin
        requests = [
            EditRequest(
                item.instruction, item.image, steps=steps or self.steps, guidance=self._guidance, seed=seed,
                size=self._size, **self._more,
            )
            for item, seed in zip(items, seeds, strict=True)
        ]  # fmt: skip
        with torch.inference_mode():
            final_latents(self.pipe, requests, start=start)
        self._on_progress(len(runs[0].noise_levels) * len(requests))
