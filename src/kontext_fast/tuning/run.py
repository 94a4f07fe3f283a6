"""The stages of a tuning in their order; what each computes is stored, so that a stop at any moment loses little."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kontext_fast.engine.solver import Solver
from kontext_fast.errors import GateFailed, InvalidInput, Refused
from kontext_fast.optimizations.adapters import merge_adapters
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.call_tracking import track_calls
from kontext_fast.optimizations.weight_identity import identity_of
from kontext_fast.pipeline.edit import EditRequest, edit, final_latents, plan_for
from kontext_fast.pipeline.edit_many import images_per_call
from kontext_fast.tuning.fit import Products
from kontext_fast.tuning.parts import Part, Parts
from kontext_fast.tuning.precisions import (
    BlockPrecision,
    EditTimes,
    Mixture,
    is_in_float32,
    longest_within,
    mixtures_of,
    path_runner,
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
from kontext_fast.tuning.solver_fit import DensePart, candidates, dense_arrays, fit_rows
from kontext_fast.tuning.store import Store
from kontext_fast.verify.converged import Array, Closeness, closeness, relative_distances
from kontext_fast.verify.converged_reference import Baseline, converged_reference, reference_evaluations
from kontext_fast.verify.paths import PathRunner

if TYPE_CHECKING:
    from torch import Tensor

_BATCH_ON_A_CPU = 16
_LAUNCH_BOUND_BATCH = 200
"""On a GPU that spends the evaluations of a small checkpoint on launching kernels."""
FAITHFUL = Mixture(1, "bf16").optimizations
"""With which everything runs that a fit is held against."""
_COMPARED = 6
"""Rules of every number: the fitted one and `schemes`."""
_TIMED_STEPS, _TIMED_EDITS = (2, 10), 3
"""Edits of so many steps are timed, so often each, to know what an evaluation takes and what surrounds it."""

Progress = Callable[[str, int, int], None]
"""(stage, evaluations done, evaluations in all)."""
_Fit = Callable[[Mixture], tuple[Solver, Array]]
"""The solver of a mixture, and how far it is from the reference on the items to choose by."""
_Reached = Callable[[Mixture, Solver], Array]
"""How far it is on the held-out items."""


class Tuning:
    """One tuning; what was stored by an earlier run of the same is not computed again."""

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
        self._folder, self._say, self._on_progress = folder, say, on_progress
        if request.precision == "float32" and not is_in_float32(pipe):
            raise InvalidInput(
                "The precision float32 needs weights in float32: load them with torch_dtype=torch.float32, or choose "
                "bf16."
            )
        # With the adapters merged that are loaded, as the preset of the file will see the weights.
        with ExitStack() as undo:
            merge_adapters(pipe, track_calls(pipe, undo), undo)
            self.weights = identity_of(pipe.transformer)
        self._stage, self._done, self._total = "", 0, 0
        self._times: dict[BlockPrecision, EditTimes] = {}
        self._store = Store(folder / "work", self._description(), resume=resume)
        self._batches = {name: self._batched(part) for name, part in vars(parts).items()}

    def run(self, result: TuneResult, on_point: Callable[[Point], object]) -> None:
        """Add the numbers of every point to `result`, and call `on_point` with each as soon as it is there."""
        request = self._request
        self._require_disk()
        mixtures = self._mixtures()
        numbers = {mixture.evaluations for mixture in mixtures}
        self._total = self._evaluations_ahead(mixtures)
        with self._runner(FAITHFUL) as runner:
            self._announce(runner)
            levels = {steps: self._levels(runner, steps) for steps in (request.grid, *sorted(numbers))}
            dense = self._dense_parts(runner, levels[request.grid])
            choice = self._targets(runner, "choose")
            held_out = self._targets(runner, "held_out")
        if request.target == "converged":
            in_float32 = _distances(held_out, "steps")
            result.baseline = {
                # With weights in float32 diffusers rounds nothing in between: it is the same arithmetic.
                AS_RUN: in_float32 if is_in_float32(self._pipe) else self._as_diffusers_runs_it(held_out),
                IN_FLOAT32: in_float32,
                REFERENCE_ERROR: _joined(held_out, "error"),
            }
        with self._runners() as runner_of:
            runner = runner_of(mixtures[0].optimizations)
            self._stage = "presets to compare with"
            for name in PRESET_NAMES:
                beside = self._distances_of_rule(runner, "held_out", held_out, name, steps_of_preset(name))
                result.baseline[f"steps of {name}"] = beside

            def fit(mixture: Mixture) -> tuple[Solver, Array]:
                own = runner_of(mixture.optimizations)
                return self._fitted(own, dense, choice, levels[request.grid], mixture)

            def reached(mixture: Mixture, solver: Solver) -> Array:
                own, name = runner_of(mixture.optimizations), f"{mixture.key}-fitted"
                return self._distances_of_rule(own, "held_out", held_out, name, _always(solver))

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
        return "{}x{}".format(*self._sides(item))

    # What is computed, in the order in which it is.

    def _mixtures(self) -> list[Mixture]:
        """What is tried, in this order: of `as_accurate` the most evaluations of a precision first."""
        request = self._request
        if request.precision == "auto" or request.seconds is not None:
            timed: tuple[BlockPrecision, ...] = ("fp8", "bf16") if request.precision == "auto" else (request.precision,)
            self._times = {precision: self._edit_times(precision) for precision in timed}
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

    def _edit_times(self, precision: BlockPrecision) -> EditTimes:
        if precision == "fp8" and self._pipe._execution_device.type != "cuda":
            raise Refused(
                "The seconds of fp8 cannot be measured here, since its kernels are emulated on a CPU: use a GPU with "
                "fp8, or name the evaluations and one precision."
            )
        return EditTimes.of(self._store.data(f"seconds-{precision}", partial(self._time_edits, precision)))

    def _time_edits(self, precision: BlockPrecision) -> dict[str, float]:
        """Seconds of an edit with plain steps, the fastest of a few, by the number of steps."""
        self._stage = "time of an edit"
        item, seconds = self._parts.fit.items[0], dict[str, float]()
        with self._runner(Mixture(1, precision).optimizations) as runner:
            runner.close()  # Edits run as a call does.
            for steps in _TIMED_STEPS:
                edits = [
                    edit(self._pipe, self._edit_of(item, seed=0, steps=steps)).seconds for _ in range(_TIMED_EDITS)
                ]
                seconds[str(steps)] = min(edits)
        return seconds

    def _levels(self, runner: PathRunner, steps: int) -> list[float]:
        levels: list[float] = self._store.data(
            f"levels-{steps:03}", lambda: runner.levels(self._parts.fit.items, steps)
        )
        return levels

    def _dense_parts(self, runner: PathRunner, levels: Sequence[float]) -> list[DensePart]:
        self._stage = "dense paths to fit to"
        parts = []
        for index, batch in enumerate(self._batches["fit"]):

            def compute(batch: Part) -> dict[str, npt.NDArray[Any]]:
                path = runner.dense(batch.items, batch.seeds, levels)
                steps = self._request.target == "steps"
                end = runner.euler(batch.items, batch.seeds, self._request.steps) if steps else path.states[-1]
                return dense_arrays(path, end)

            arrays = self._store.arrays(f"fit-{index:04}", partial(compute, batch))
            products = Products(*(np.asarray(arrays[name]) for name in ("gram", "cross", "squares")))
            parts.append(DensePart(batch, arrays["states"], arrays["target"], products))
        return parts

    def _targets(self, runner: PathRunner, name: str) -> list[Mapping[str, npt.NDArray[Any]]]:
        """Of each batch: `target`, `steps` (what the steps of a call give) and the target's own `error` [I]."""
        self._stage = "items to choose by" if name == "choose" else "reference of the held-out items"
        return [
            self._store.arrays(f"{name}-{index:04}", partial(self._target, runner, batch, fine=name == "held_out"))
            for index, batch in enumerate(self._batches[name])
        ]

    def _target(self, runner: PathRunner, batch: Part, *, fine: bool) -> dict[str, npt.NDArray[Any]]:
        request = self._request
        steps = _numpy(runner.euler(batch.items, batch.seeds, request.steps))
        if request.target == "steps":
            return {"steps": steps, "target": steps, "error": np.zeros(len(batch))}
        if not fine:
            levels = self._levels(runner, request.grid)
            target = _numpy(runner.dense(batch.items, batch.seeds, levels, keep=False).states[-1])
            return {"steps": steps, "target": target, "error": np.full(len(batch), np.nan)}
        baseline = Baseline(request.steps, steps)
        reference = converged_reference(runner, batch.items, batch.seeds, baseline, request.reference)
        return {"steps": steps, "target": reference.target, "error": reference.error}

    def _as_diffusers_runs_it(self, held_out: Sequence[Mapping[str, npt.NDArray[Any]]]) -> Array:
        """[I] distances of the pipeline without anything applied to it."""
        import torch

        self._stage, steps = "baseline as diffusers runs it", self._request.steps

        def compute(batch: Part, target: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
            requests = [
                self._edit_of(item, seed=seed, steps=steps) for item, seed in zip(batch.items, batch.seeds, strict=True)
            ]
            with torch.inference_mode():
                latents = final_latents(self._pipe, requests)
            self._note(steps * len(batch))
            return {"distances": relative_distances(_numpy(latents), target)}

        return np.concatenate(
            [
                self._store.arrays(f"as-diffusers-{index:04}", partial(compute, batch, of_batch["target"]))["distances"]
                for index, (batch, of_batch) in enumerate(zip(self._batches["held_out"], held_out, strict=True))
            ]
        )

    def _fitted(
        self,
        runner: PathRunner,
        dense: Sequence[DensePart],
        choice: Sequence[Mapping[str, npt.NDArray[Any]]],
        levels: Sequence[float],
        mixture: Mixture,
    ) -> tuple[Solver, Array]:
        """The candidate nearest to the target on the items to choose by, and its distances [I] on those to fit to, then
        to choose by."""
        number = mixture.evaluations
        self._stage = f"fit of {number} evaluations"
        chosen = self._store.data(f"{number:02}-levels", lambda: candidates(dense, number))
        fits: list[tuple[float, Solver, Array]] = []
        for index, places in enumerate(chosen):
            name = f"{mixture.key}-candidate-{index}"
            fit = self._store.data(name, partial(_dumped, partial(fit_rows, runner, dense, levels, places)))
            solver = Solver.model_validate(fit["solver"])
            on_choice = self._distances_of_rule(runner, "choose", choice, name, _always(solver))
            fits.append((float(on_choice.mean()), solver, np.concatenate([fit["distances"], on_choice])))
        return min(fits, key=lambda fit: fit[0])[1:]

    def _proved(
        self,
        runner: PathRunner,
        mixture: Mixture,
        solver: Solver,
        held_out: Sequence[Mapping[str, npt.NDArray[Any]]],
        baseline: Mapping[str, Array],
        levels_of: Callable[[int], Sequence[float]],
    ) -> Point:
        number = mixture.evaluations
        self._stage = f"proof of {number} evaluations"
        rules = {"fitted": _always(solver), **schemes(number, levels_of)}
        distances = {
            name: self._distances_of_rule(runner, "held_out", held_out, f"{mixture.key}-{_file_name(name)}", rule)
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

    def _distances_of_rule(
        self,
        runner: PathRunner,
        part: str,
        targets: Sequence[Mapping[str, npt.NDArray[Any]]],
        name: str,
        rule: Rule,
    ) -> Array:
        """[I] of a rule on a part of the items."""

        def compute(batch: Part, target: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
            final = _numpy(runner.run(batch.items, batch.seeds, rule))
            return {"distances": relative_distances(final, target)}

        return np.concatenate(
            [
                self._store.arrays(f"{part}-{name}-{index:04}", partial(compute, batch, target["target"]))["distances"]
                for index, (batch, target) in enumerate(zip(self._batches[part], targets, strict=True))
            ]
        )

    # How it is run.

    def _runner(self, optimizations: Sequence[Optimization]) -> AbstractContextManager[PathRunner]:
        items = sum(len(part) for part in vars(self._parts).values())
        return path_runner(self._pipe, optimizations, self._request, items=items, on_progress=self._note)

    @contextmanager
    def _runners(self) -> Iterator[Callable[[Sequence[Optimization]], PathRunner]]:
        """One at a time, which stays as long as the next one asked for has the same optimizations."""
        with ExitStack() as current:
            latest: list[tuple[Sequence[Optimization], PathRunner]] = []

            def runner_of(optimizations: Sequence[Optimization]) -> PathRunner:
                if not latest or latest[0][0] != optimizations:
                    current.close()
                    latest[:] = [(optimizations, current.enter_context(self._runner(optimizations)))]
                return latest[0][1]

            yield runner_of

    def _edit_of(self, item: Any, *, seed: int, steps: int) -> EditRequest:
        request = self._request
        return EditRequest(
            item.instruction, item.image, steps=steps, guidance=request.guidance, seed=seed, size=request.size
        )

    def _require_disk(self) -> None:
        """Dense paths stay on the disk, so that memory does not grow with the items."""
        states = self._request.grid + 2
        # A token of 16x16 pixels has 64 numbers of 4 bytes.
        needed = sum(states * width * height for width, height in map(self._sides, self._parts.fit.items))
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise Refused(
                f"The paths of {len(self._parts.fit)} items take {needed / 1e9:.1f} GB of disk in {self._folder}, "
                f"which has {free / 1e9:.1f}: give another folder, or fewer items."
            )

    def _announce(self, runner: PathRunner) -> None:
        """State the work ahead, from the time of one batch."""
        batch = self._batches["fit"][0]
        self._stage = "time of an evaluation"
        runner.levels(batch.items, 2)
        start, done = perf_counter(), self._done
        runner.euler(batch.items, batch.seeds, 2)
        seconds = (perf_counter() - start) / (2 * len(batch))
        self._done = done
        self._say(
            f"About {self._total} evaluations of single edits, {self._total * seconds / 60:.0f} minutes here at "
            f"{seconds * 1000:.0f} ms each; what is done already is not computed again."
        )

    def _note(self, evaluations: int) -> None:
        self._done += evaluations
        if self._on_progress is not None:
            self._on_progress(self._stage, self._done, self._total)

    def _evaluations_ahead(self, mixtures: Sequence[Mixture]) -> int:
        """At most: where one of them is proved in the end, the others are fitted, and run if `as_accurate`."""
        request, parts = self._request, self._parts
        converged = request.target == "converged"
        fine = reference_evaluations(request.steps, request.reference)
        extra = 0 if converged else request.steps
        total = len(parts.fit) * (request.grid + extra)
        total += len(parts.choose) * (request.steps + request.grid)
        as_run = 0 if is_in_float32(self._pipe) else request.steps
        total += len(parts.held_out) * (request.steps + (fine + as_run if converged else 0))
        total += len(parts.held_out) * sum(len(preset_steps(name, request.steps).computed) for name in PRESET_NAMES)
        numbers = [mixture.evaluations for mixture in mixtures]
        proved = [max(numbers)] if request.as_accurate or request.seconds is not None else numbers
        total += sum(numbers) * 2 * (len(parts.fit) + len(parts.choose))
        total += sum(numbers) * len(parts.held_out) if request.as_accurate else 0
        return total + sum(proved) * _COMPARED * len(parts.held_out)

    def _batched(self, part: Part) -> list[Part]:
        """Neighbours of one size, as many as one call takes."""
        most = self._request.images_per_call or self._default_images_per_call()
        batches: list[Part] = []
        for item, seed in zip(part.items, part.seeds, strict=True):
            last = batches[-1] if batches else None
            if last and len(last) < most and self._sides(last.items[0]) == self._sides(item):
                batches[-1] = Part([*last.items, item], [*last.seeds, seed])
            else:
                batches.append(Part([item], [seed]))
        return batches

    def _default_images_per_call(self) -> int:
        if self._pipe._execution_device.type == "cpu":
            return _BATCH_ON_A_CPU
        return _LAUNCH_BOUND_BATCH if images_per_call(self._pipe) > 1 else 1

    def _sides(self, item: Any) -> tuple[int, int]:
        plan = plan_for(self._pipe, item.image.size, self._request.size)
        return plan.width, plan.height

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


def _numpy(latents: Tensor) -> npt.NDArray[np.float32]:
    return np.asarray(latents.float().cpu().numpy())


def _joined(batches: Sequence[Mapping[str, npt.NDArray[Any]]], name: str) -> Array:
    return np.concatenate([batch[name] for batch in batches]).astype(np.float64)


def _distances(batches: Sequence[Mapping[str, npt.NDArray[Any]]], name: str) -> Array:
    """[I] of the latents of that name to the targets, one batch in memory at a time."""
    return np.concatenate([relative_distances(batch[name], batch["target"]) for batch in batches])


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())
