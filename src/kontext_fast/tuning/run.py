"""The stages of a tuning in their order; what each computes is stored, so that a stop at any moment loses little."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from kontext_fast.engine.solver import Solver
from kontext_fast.errors import GateFailed, InvalidInput, Refused
from kontext_fast.optimizations.adapters import merge_adapters
from kontext_fast.optimizations.call_tracking import track_calls
from kontext_fast.optimizations.weight_identity import identity_of
from kontext_fast.tuning.parts import Parts
from kontext_fast.tuning.precisions import (
    BlockPrecision,
    EditTimes,
    Mixture,
    is_in_float32,
    longest_within,
    mixtures_of,
    seconds_of,
)
from kontext_fast.tuning.proof import as_data, verdict
from kontext_fast.tuning.request import (
    AS_ACCURATE,
    AS_ACCURATE_CONFIDENCE,
    AS_RUN,
    IN_FLOAT32,
    REFERENCE_ERROR,
    Point,
    TuneRequest,
    TuneResult,
)
from kontext_fast.tuning.schemes import PRESET_NAMES, Rule, preset_steps, schemes, steps_of_preset
from kontext_fast.tuning.solver_fit import DensePart, candidates, fit_rows
from kontext_fast.tuning.store import Arrays, Store
from kontext_fast.tuning.stored_runs import Progress, StoredRuns
from kontext_fast.verify.converged import Array, Closeness, closeness, relative_distances
from kontext_fast.verify.converged_reference import reference_evaluations
from kontext_fast.verify.paths import PathRunner

FAITHFUL = Mixture(1, "bf16").optimizations
"""With which everything runs that a fit is held against."""
_COMPARED = 6
"""Rules of every number: the fitted one and `schemes`."""
_Fit = Callable[[Mixture], tuple[Solver, Array]]
"""The solver of a mixture, and how far it is from the reference on the items to choose by."""
_Reached = Callable[[Mixture, Solver], Array]
"""How far it is on the held-out items."""


class Tuning:
    """One tuning; a stop at any moment loses little, since all runs of its items are stored."""

    def __init__(
        self,
        pipe: Any,
        parts: Parts,
        request: TuneRequest,
        folder: Path,
        *,
        resume: bool,
        say: Callable[[str], object],
        on_progress: Progress | None,
    ) -> None:
        self._pipe, self._parts, self._request = pipe, parts, request
        self._folder, self._say = folder, say
        if request.precision == "float32" and not is_in_float32(pipe):
            raise InvalidInput(
                "The precision float32 needs weights in float32: load them with torch_dtype=torch.float32, or choose "
                "bf16."
            )
        # With the adapters merged that are loaded, as the preset of the file will see the weights.
        with ExitStack() as undo:
            merge_adapters(pipe, track_calls(pipe, undo), undo)
            self.weights = identity_of(pipe.transformer)
        self._times: dict[BlockPrecision, EditTimes] = {}
        store = Store(folder / "work", self._description(), resume=resume)
        self._runs = StoredRuns(pipe, parts, request, store, on_progress)

    def run(self, result: TuneResult, on_point: Callable[[Point], object]) -> None:
        """Add the numbers of every point to `result`, and call `on_point` with each as soon as it is there."""
        request = self._request
        self._require_disk()
        mixtures = self._mixtures()
        numbers = {mixture.evaluations for mixture in mixtures}
        self._runs.total = self._evaluations_ahead(mixtures)
        with self._runs.runner(FAITHFUL) as runner:
            self._announce(runner)
            levels = {steps: self._runs.levels(runner, steps) for steps in (request.grid, *sorted(numbers))}
            dense = self._runs.dense_parts(runner, levels[request.grid])
            choice = self._runs.targets(runner, "choose")
            held_out = self._runs.targets(runner, "held_out")
        if request.target == "converged":
            in_float32 = _distances(held_out, "steps")
            result.baseline = {
                # With weights in float32 diffusers rounds nothing in between: it is the same arithmetic.
                AS_RUN: in_float32 if is_in_float32(self._pipe) else self._runs.as_diffusers_runs_it(held_out),
                IN_FLOAT32: in_float32,
                REFERENCE_ERROR: _joined(held_out, "error"),
            }
        with self._runs.runners() as runner_of:
            runner = runner_of(mixtures[0].optimizations)
            self._runs.stage = "presets to compare with"
            for name in PRESET_NAMES:
                beside = self._runs.distances_of_rule(runner, "held_out", held_out, name, steps_of_preset(name))
                result.baseline[f"steps of {name}"] = beside

            def fit(mixture: Mixture) -> tuple[Solver, Array]:
                own = runner_of(mixture.optimizations)
                return self._fitted(own, dense, choice, levels[request.grid], mixture)

            def reached(mixture: Mixture, solver: Solver) -> Array:
                own, name = runner_of(mixture.optimizations), f"{mixture.key}-fitted"
                return self._runs.distances_of_rule(own, "held_out", held_out, name, _always(solver))

            for mixture, solver in self._worth_a_proof(mixtures, fit, reached, result):
                own = runner_of(mixture.optimizations)
                point = self._proved(own, mixture, solver, held_out, result.baseline, levels.__getitem__)
                result.points.append(point)
                if self._times:
                    result.seconds = {mixture.evaluations: seconds_of(mixture, self._times)}
                on_point(point)
        if not result.points:
            raise GateFailed(
                f"Cannot tell: not even {max(numbers)} evaluations were shown to be as accurate as {request.steps} "
                f"steps on {len(self._parts.held_out)} held-out items; give more of them, or name the evaluations."
            )

    def size_of(self, item: Any) -> str:
        """ "WIDTHxHEIGHT" in pixels, as an edit of the item runs."""
        return "{}x{}".format(*self._runs.sides(item))

    # What is computed, in the order in which it is.

    def _mixtures(self) -> list[Mixture]:
        """What is tried, in this order: of `as_accurate` the most evaluations of a precision first."""
        request = self._request
        if request.precision == "auto" or request.seconds is not None:
            timed: tuple[BlockPrecision, ...] = ("fp8", "bf16") if request.precision == "auto" else (request.precision,)
            self._times = {precision: self._runs.edit_times(precision) for precision in timed}
        if request.as_accurate:
            numbers = [number for number in AS_ACCURATE if number < request.steps]
            if request.precision != "auto":
                return [Mixture(number, request.precision) for number in numbers]
            mixtures = [mixture for number in numbers for mixture in mixtures_of(number)]
            return sorted(mixtures, key=lambda mixture: mixture.words)
        if request.seconds is None:
            assert request.precision != "auto"
            return [Mixture(number, request.precision) for number in request.evaluations]
        most = min(request.most_evaluations, request.steps)
        mixtures = longest_within(request.seconds, self._times, most=most, precision=request.precision)
        if not mixtures:
            shortest = min(times.around + 2 * times.each for times in self._times.values())
            raise Refused(
                f"An edit takes {shortest:.2g} seconds here with 2 evaluations already; allow more, choose a smaller "
                "size, or use a faster machine."
            )
        for mixture in mixtures:
            seconds = seconds_of(mixture, self._times)
            self._say(f"{mixture.evaluations} evaluations ({mixture.words}) take about {seconds:.2g} seconds here.")
        return mixtures

    def _worth_a_proof(
        self,
        mixtures: Sequence[Mixture],
        fit: _Fit,
        reached: _Reached,
        result: TuneResult,
    ) -> Iterator[tuple[Mixture, Solver]]:
        """Those whose figures are wanted: all that were named; of those that an edit has time for the one that comes
        nearest on the items seen; or the quickest of those that are shown to be as accurate as baseline."""
        if self._request.as_accurate:
            yield from self._as_accurate(mixtures, fit, reached, result)
        elif self._request.seconds is None:
            yield from ((mixture, fit(mixture)[0]) for mixture in mixtures)
        else:
            fits = [(mixture, *fit(mixture)) for mixture in mixtures]
            mixture, solver, _ = min(fits, key=lambda fitted: float(fitted[2].mean()))
            yield mixture, solver

    def _as_accurate(
        self,
        mixtures: Sequence[Mixture],
        fit: _Fit,
        reached: _Reached,
        result: TuneResult,
    ) -> Iterator[tuple[Mixture, Solver]]:
        """Asks the held-out items down from the most evaluations, until a number is not shown to be as accurate.

        As each question is asked only where all before it had a yes, their order being fixed beforehand, any number of
        them together is wrong no more often than a single one (a fixed sequence of tests, Maurer et al. 1995). The
        confidence leaves room for the mixtures of `auto`, each of which is a sequence of its own.
        """
        baseline, error = result.baseline[IN_FLOAT32], result.baseline[REFERENCE_ERROR]
        shown: list[tuple[Mixture, Solver]] = []
        ended: set[tuple[str, int]] = set()
        for mixture in mixtures:
            sequence = mixture.precision, mixture.last_in_full
            if sequence in ended:
                continue
            solver = fit(mixture)[0]
            distances = reached(mixture, solver)
            told = closeness(distances, baseline, error, ratio_at_most=1, confidence=AS_ACCURATE_CONFIDENCE)
            result.asked.append({
                "evaluations": mixture.evaluations, "precision": mixture.words, "closeness": told.value,
                **as_data({"fitted": distances})["fitted"],
            })  # fmt: skip
            self._say(
                f"{mixture.evaluations} evaluations ({mixture.words}) on the held-out items, than "
                f"{self._request.steps} steps: {told.value}."
            )
            if told is Closeness.NO_FARTHER:
                shown.append((mixture, solver))
            else:
                ended.add(sequence)
        if shown:
            yield min(shown, key=lambda fitted: self._quickness(fitted[0]))

    def _quickness(self, mixture: Mixture) -> float:
        return seconds_of(mixture, self._times) if self._times else mixture.evaluations

    def _fitted(
        self,
        runner: PathRunner,
        dense: Sequence[DensePart],
        choice: Sequence[Arrays],
        levels: Sequence[float],
        mixture: Mixture,
    ) -> tuple[Solver, Array]:
        """The candidate nearest to the target on the items to choose by, and its distances [I] on those to fit to, then
        to choose by."""
        number = mixture.evaluations
        self._runs.stage = f"fit of {number} evaluations"
        chosen = self._runs.store.data(f"{number:02}-levels", lambda: candidates(dense, number))
        fits: list[tuple[float, Solver, Array]] = []
        for index, places in enumerate(chosen):
            name = f"{mixture.key}-candidate-{index}"
            fit = self._runs.store.data(name, partial(_dumped, partial(fit_rows, runner, dense, levels, places)))
            solver = Solver.model_validate(fit["solver"])
            on_choice = self._runs.distances_of_rule(runner, "choose", choice, name, _always(solver))
            fits.append((float(on_choice.mean()), solver, np.concatenate([fit["distances"], on_choice])))
        return min(fits, key=lambda fit: fit[0])[1:]

    def _proved(
        self,
        runner: PathRunner,
        mixture: Mixture,
        solver: Solver,
        held_out: Sequence[Arrays],
        baseline: Mapping[str, Array],
        levels_of: Callable[[int], Sequence[float]],
    ) -> Point:
        number = mixture.evaluations
        self._runs.stage = f"proof of {number} evaluations"
        rules = {"fitted": _always(solver), **schemes(number, levels_of)}
        distances = {
            name: self._runs.distances_of_rule(runner, "held_out", held_out, f"{mixture.key}-{_file_name(name)}", rule)
            for name, rule in rules.items()
        }
        fitted, error = distances["fitted"], baseline.get(REFERENCE_ERROR)
        return Point(
            mixture,
            solver,
            verdict(fitted, distances["plain steps"], error),
            None if error is None else closeness(fitted, baseline[IN_FLOAT32], error, ratio_at_most=1),
            distances,
        )

    def _require_disk(self) -> None:
        """Dense paths stay on the disk, so that memory does not grow with the items."""
        states = self._request.grid + 2
        # A token of 16x16 pixels has 64 numbers of 4 bytes.
        needed = sum(states * width * height for width, height in map(self._runs.sides, self._parts.fit.items))
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise Refused(
                f"The paths of {len(self._parts.fit)} items take {needed / 1e9:.1f} GB of disk in {self._folder}, "
                f"which has {free / 1e9:.1f}: give another folder, or fewer items."
            )

    def _announce(self, runner: PathRunner) -> None:
        """State the work ahead, from the time of one batch."""
        batch = self._runs.batches["fit"][0]
        self._runs.stage = "time of an evaluation"
        runner.levels(batch.items, 2)
        start, done = perf_counter(), self._runs.done
        runner.euler(batch.items, batch.seeds, 2)
        seconds = (perf_counter() - start) / (2 * len(batch))
        self._runs.done = done
        self._say(
            f"About {self._runs.total} evaluations of single edits, {self._runs.total * seconds / 60:.0f} minutes here "
            f"at {seconds * 1000:.0f} ms each; what is done already is not computed again."
        )

    def _evaluations_ahead(self, mixtures: Sequence[Mixture]) -> int:
        """At most: where one of them is proved in the end, the others are fitted, and run if `as_accurate`."""
        request, parts = self._request, self._parts
        converged = request.target == "converged"
        fine = reference_evaluations(request.reference)
        as_run = 0 if is_in_float32(self._pipe) else request.steps
        total = len(parts.fit) * (request.grid + (0 if converged else request.steps))
        total += len(parts.choose) * (request.grid if converged else request.steps)
        total += len(parts.held_out) * (request.steps + (fine + as_run if converged else 0))
        total += len(parts.held_out) * sum(len(preset_steps(name, request.steps).computed) for name in PRESET_NAMES)
        numbers = [mixture.evaluations for mixture in mixtures]
        proved = [max(numbers)] if request.as_accurate or request.seconds is not None else numbers
        total += sum(numbers) * 2 * (len(parts.fit) + len(parts.choose))
        total += sum(numbers) * len(parts.held_out) if request.as_accurate else 0
        return total + sum(proved) * _COMPARED * len(parts.held_out)

    def _description(self) -> dict[str, Any]:
        """Everything that what is computed depends on."""
        parts = {
            name: hashlib.sha256(
                repr([(item.id, seed) for item, seed in zip(part.items, part.seeds, strict=True)]).encode()
            ).hexdigest()
            for name, part in vars(self._parts).items()
        }
        request = {name: value for name, value in asdict(self._request).items() if name != "evaluations"}
        return {
            "parts": parts,
            **request,
            "weights": self.weights.model_dump(),
            "dtype": str(self._pipe.transformer.dtype),
        }


def _always(solver: Solver) -> Rule:
    return lambda _: solver


def _dumped(fit: Callable[[], tuple[Solver, Array]]) -> Any:
    solver, distances = fit()
    return {"solver": solver.model_dump(mode="json"), "distances": distances.tolist()}


def _joined(batches: Sequence[Arrays], name: str) -> Array:
    return np.concatenate([batch[name] for batch in batches]).astype(np.float64)


def _distances(batches: Sequence[Arrays], name: str) -> Array:
    """[I] of the latents of that name to the targets, one batch in memory at a time."""
    return np.concatenate([relative_distances(batch[name], batch["target"]) for batch in batches])


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())
