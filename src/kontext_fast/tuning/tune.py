"""Fits a solver to the weights of a pipeline for each number of evaluations, and proves it on held-out items."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from kontext_fast.engine.solver import Solver
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.fitted_for import FittedFor, Target
from kontext_fast.optimizations.preset_file import Provenance, write_preset
from kontext_fast.optimizations.presets import find_preset
from kontext_fast.optimizations.registry import discover
from kontext_fast.optimizations.techniques.solver import FittedSolver
from kontext_fast.optimizations.weight_identity import WeightIdentity, identity_of
from kontext_fast.pipeline.edit import plan_for
from kontext_fast.pipeline.sizes import Size
from kontext_fast.tuning.fit import Products
from kontext_fast.tuning.parts import Part, Parts
from kontext_fast.tuning.paths import PathRunner
from kontext_fast.tuning.proof import Array, Verdict, as_data, no_farther, ratio, relative_distances, verdict
from kontext_fast.tuning.schemes import Rule, schemes
from kontext_fast.tuning.solver_fit import DensePart, candidates, dense_arrays, fit_rows
from kontext_fast.tuning.store import Store

if TYPE_CHECKING:
    from torch import Tensor

PRESETS: Mapping[str, str] = {"bf16": "faithful", "fp8": "balanced"}
"""The preset that a precision's solver is added to."""
AS_ACCURATE = (6, 7, 8, 9, 10, 11, 12, 14, 16)
"""Numbers of evaluations that `as_accurate` tries, the smallest first."""
_SMALL_PARAMETERS = 10**9
"""The time of a smaller transformer goes into launching its kernels, so that a batch takes hardly longer."""


@dataclass(frozen=True, kw_only=True)
class TuneRequest:
    """What to tune to. Raises InvalidInput on creation."""

    evaluations: tuple[int, ...] = (10,)
    as_accurate: bool = False
    """Whether to stop at the first number of AS_ACCURATE that is no farther from the converged reference than
    baseline, instead of fitting all `evaluations`."""
    precision: Literal["bf16", "fp8"] = "bf16"
    target: Target = "converged"
    steps: int = 28
    """What a call asks for."""
    guidance: float = 2.5
    size: Size | None = None
    grid: int = 112
    """Steps of the dense paths that are fitted to."""
    reference: int = 224
    """Steps of the finest of the three paths behind the converged reference; a multiple of 4."""
    images_per_call: int | None = None

    def __post_init__(self) -> None:
        if not self.evaluations or min(self.evaluations) < 2:
            raise InvalidInput("A solver has at least 2 evaluations; give for example evaluations=(7, 10).")
        if max(self.evaluations) > self.grid // 3:
            raise InvalidInput(
                f"{max(self.evaluations)} evaluations are too many to choose from {self.grid} noise levels; give "
                f"{self.grid // 3} at most."
            )
        if self.reference % 4 or self.reference <= self.steps:
            raise InvalidInput(
                f"The reference has {self.reference} steps and needs a multiple of 4 above {self.steps}."
            )
        if self.as_accurate and self.target != "converged":
            raise InvalidInput("as_accurate compares with the converged reference; leave target out.")


@dataclass(frozen=True)
class Point:
    """One number of evaluations on the held-out items."""

    evaluations: int
    solver: Solver
    verdict: Verdict
    as_accurate: bool | None
    """None where the target is not the converged reference."""
    distances: Mapping[str, Array]
    """By name, [items]: `fitted` and the schemes of as many evaluations, to the target of the fit."""

    def as_data(self) -> dict[str, Any]:
        """JSON-ready, with the ratio of `fitted` to each scheme."""
        fitted = self.distances["fitted"]
        ratios = {name: ratio(fitted, other) for name, other in self.distances.items() if name != "fitted"}
        return {
            "evaluations": self.evaluations,
            "verdict": self.verdict.value,
            "as_accurate": self.as_accurate,
            "distances": as_data(self.distances),
            "ratio_of_fitted_to": {
                name: {"value": estimate.value, "interval": estimate.interval} for name, estimate in ratios.items()
            },
        }


@dataclass
class TuneResult:
    """What a tuning found."""

    folder: Path
    target: Target
    points: list[Point] = field(default_factory=list)
    baseline: dict[str, Array] = field(default_factory=dict)
    """Distances of the steps that a call asks for, to the converged reference: as diffusers runs them, and in float32;
    and `reference error`, its own. Empty where the target is those steps."""
    files: list[Path] = field(default_factory=list)

    def as_data(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "target": self.target,
            "baseline": as_data(self.baseline),
            "points": [point.as_data() for point in self.points],
            "files": [file.name for file in self.files],
        }


Progress = Callable[[str, int, int], None]
"""(stage, evaluations done, evaluations in all)."""


def tune(
    pipe: Any,
    parts: Parts,
    request: TuneRequest,
    folder: Path,
    *,
    checkpoint: str = "these weights",
    loras: Sequence[str] = (),
    resume: bool = False,
    say: Callable[[str], object] = lambda _: None,
    on_progress: Progress | None = None,
) -> TuneResult:
    """Fit `request` to the weights of `pipe`, which is not accelerated, and write `N.toml` per passing number N.

    `folder` holds everything that was computed, so that `resume` goes on after a stop at any moment, to the same
    files. `checkpoint` and `loras` are how messages and files name the weights. `say` gets a sentence with the work
    ahead. Raises InvalidInput, Refused or OutOfMemory, and what the pipeline raises.
    """
    return _Tuning(pipe, parts, request, folder, checkpoint, loras, resume, say, on_progress).run()


class _Tuning:
    def __init__(
        self,
        pipe: Any,
        parts: Parts,
        request: TuneRequest,
        folder: Path,
        checkpoint: str,
        loras: Sequence[str],
        resume: bool,
        say: Callable[[str], object],
        on_progress: Progress | None,
    ) -> None:
        self._pipe, self._parts, self._request = pipe, parts, request
        self._folder, self._checkpoint, self._loras = folder, checkpoint, tuple(loras)
        self._say, self._on_progress = say, on_progress
        self._identity = identity_of(pipe.transformer)
        self._stage, self._done = "", 0
        self._store = Store(folder / "work", self._description(), resume=resume)
        self._batches = {name: self._batched(part) for name, part in vars(parts).items()}
        self._total = self._evaluations_ahead()

    def run(self) -> TuneResult:
        request, result = self._request, TuneResult(self._folder, self._request.target)
        converged = request.target == "converged"
        with self._runner("faithful") as runner:
            self._announce(runner)
            levels = self._store.data(
                "levels",
                lambda: {
                    str(steps): runner.levels(self._parts.fit.items, steps)
                    for steps in sorted({request.grid, *self._numbers})
                },
            )
            dense = self._dense_parts(runner, levels[str(request.grid)])
            choice = self._targets(runner, "choose", fine=request.as_accurate)
            held_out = self._targets(runner, "held_out", fine=True)
        target = _joined(held_out, "target")
        if converged:
            as_run = self._as_diffusers_runs_it()
            result.baseline = {
                "as diffusers runs it": relative_distances(as_run, target),
                "in float32": relative_distances(_joined(held_out, "steps"), target),
                "reference error": _joined(held_out, "error").astype(np.float64),
            }
        with self._runner(PRESETS[request.precision]) as runner:
            for evaluations in self._numbers:
                solver, chosen_by = self._fitted(runner, dense, choice, levels[str(request.grid)], evaluations)
                if request.as_accurate and not no_farther(
                    chosen_by, relative_distances(_joined(choice, "steps"), _joined(choice, "target"))
                ):
                    self._say(f"{evaluations} evaluations: farther than baseline on the items to choose by.")
                    continue
                result.points.append(
                    self._proved(runner, solver, target, result.baseline, levels=lambda n: levels[str(n)])
                )
                if request.as_accurate:
                    break
        for point in result.points:
            if point.verdict is Verdict.PASSES and (point.as_accurate or not request.as_accurate):
                result.files.append(self._written(point, result))
        return result

    @property
    def _numbers(self) -> tuple[int, ...]:
        return AS_ACCURATE if self._request.as_accurate else self._request.evaluations

    # What is computed, in the order in which it is.

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

    def _targets(self, runner: PathRunner, name: str, *, fine: bool) -> list[Mapping[str, npt.NDArray[Any]]]:
        """Of each batch: `target`, `steps` (what the steps of a call give) and the target's own `error` [I]."""
        self._stage = "items to choose by" if name == "choose" else "reference of the held-out items"
        return [
            self._store.arrays(f"{name}-{index:04}", partial(self._target, runner, batch, fine))
            for index, batch in enumerate(self._batches[name])
        ]

    def _target(self, runner: PathRunner, batch: Part, fine: bool) -> dict[str, npt.NDArray[Any]]:
        request = self._request
        steps = _numpy(runner.euler(batch.items, batch.seeds, request.steps))
        if request.target == "steps":
            return {"steps": steps, "target": steps, "error": np.zeros(len(batch))}
        if not fine:
            target = _numpy(runner.euler(batch.items, batch.seeds, request.grid))
            return {"steps": steps, "target": target, "error": np.full(len(batch), np.nan)}
        finest, half, quarter = (
            _numpy(runner.euler(batch.items, batch.seeds, request.reference // part)) for part in (1, 2, 4)
        )
        # Euler's error is proportional to the step to first order, which this extrapolation removes; what is left
        # falls by four when the steps are halved, so a third of the change is an estimate of it.
        target, coarser = 2 * finest - half, 2 * half - quarter
        return {"steps": steps, "target": target, "error": relative_distances(coarser, target) / 3}

    def _fitted(
        self,
        runner: PathRunner,
        dense: Sequence[DensePart],
        choice: Sequence[Mapping[str, npt.NDArray[Any]]],
        levels: Sequence[float],
        evaluations: int,
    ) -> tuple[Solver, Array]:
        """The candidate nearest to the target on the items to choose by, and its distances there."""
        self._stage = f"fit of {evaluations} evaluations"
        fits: list[tuple[Solver, Array]] = []
        for index, chosen in enumerate(candidates(dense, evaluations)):
            name = f"{evaluations:02}-candidate-{index}"
            fit = partial(fit_rows, runner, dense, levels, chosen)
            solver = Solver.model_validate(self._store.data(name, partial(_dumped, fit)))
            latents = self._run_rule(runner, "choose", name, _always(solver))
            fits.append((solver, relative_distances(latents, _joined(choice, "target"))))
        return min(fits, key=lambda fit: float(fit[1].mean()))

    def _proved(
        self,
        runner: PathRunner,
        solver: Solver,
        target: npt.NDArray[np.float32],
        baseline: Mapping[str, Array],
        levels: Callable[[int], Sequence[float]],
    ) -> Point:
        number = solver.evaluations
        self._stage = f"proof of {number} evaluations"
        rules = {"fitted": _always(solver), **schemes(number, levels)}
        distances = {
            name: relative_distances(
                self._run_rule(runner, "held_out", f"{number:02}-{_file_name(name)}", rule), target
            )
            for name, rule in rules.items()
        }
        plain = distances["plain steps"]
        error = baseline.get("reference error")
        accurate = no_farther(distances["fitted"], baseline["in float32"]) if baseline else None
        return Point(number, solver, verdict(distances["fitted"], plain, error), accurate, distances)

    def _run_rule(self, runner: PathRunner, part: str, name: str, rule: Rule) -> npt.NDArray[np.float32]:
        """[I, N, C] the final latents of a rule on a part of the items."""
        return _joined(
            [
                self._store.arrays(
                    f"{part}-{name}-{index:04}",
                    partial(_final, runner, batch, rule),
                )
                for index, batch in enumerate(self._batches[part])
            ],
            "final",
        )

    def _as_diffusers_runs_it(self) -> npt.NDArray[np.float32]:
        """[I, N, C] of the held-out items, of the pipeline without anything applied to it."""
        import torch

        from kontext_fast.pipeline.edit import EditRequest, final_latents

        self._stage, request = "baseline as diffusers runs it", self._request

        def compute(batch: Part) -> dict[str, npt.NDArray[Any]]:
            requests = [
                EditRequest(
                    item.instruction, item.image, steps=request.steps, guidance=request.guidance, seed=seed,
                    size=request.size,
                )
                for item, seed in zip(batch.items, batch.seeds, strict=True)
            ]  # fmt: skip
            with torch.inference_mode():
                latents = final_latents(self._pipe, requests)
            self._note(request.steps * len(batch))
            return {"final": _numpy(latents)}

        return _joined(
            [
                self._store.arrays(f"as-diffusers-{index:04}", partial(compute, batch))
                for index, batch in enumerate(self._batches["held_out"])
            ],
            "final",
        )

    # What it is written as.

    def _written(self, point: Point, result: TuneResult) -> Path:
        request = self._request
        base = find_preset(PRESETS[request.precision]).optimizations
        fitted_for = FittedFor(
            checkpoint=self._checkpoint,
            weights=self._identity,
            loras=self._loras,
            target=request.target,
            steps=request.steps,
            guidance=(request.guidance, request.guidance),
            sizes=tuple(sorted({self._size_of(item) for item in self._parts.fit.items})),
        )
        provenance = Provenance(
            precision=request.precision,
            fitted_items=len(self._parts.fit),
            chosen_items=len(self._parts.choose),
            held_out_items=len(self._parts.held_out),
            grid_steps=request.grid,
            reference_steps=request.reference,
            scores=point.as_data(),
            baseline=as_data(result.baseline),
        )
        file = self._folder / f"{point.evaluations}.toml"
        write_preset(
            file,
            name=f"tuned-{point.evaluations}",
            summary=f"{point.evaluations} evaluations, fitted to {self._checkpoint}",
            optimizations=(*base, FittedSolver(fitted=point.solver, fitted_for=fitted_for)),
            provenance=provenance,
        )
        return file

    # How it is run.

    @contextmanager
    def _runner(self, preset: str) -> Iterator[PathRunner]:
        # The same inputs come again at every evaluation, so whatever keeps entries of them keeps all.
        entries = 1 + sum(len(part) for part in vars(self._parts).values())
        caches = [
            technique(entries=entries) for technique in discover().values() if "entries" in technique.model_fields
        ]
        applied = (*self._optimizations(preset), *caches)
        with accelerate(self._pipe, applied, quiet=True):
            runner = PathRunner(
                self._pipe,
                steps=self._request.steps,
                guidance=self._request.guidance,
                size=self._request.size,
                on_progress=self._note,
            )
            try:
                yield runner
            finally:
                runner.close()

    def _optimizations(self, preset: str) -> tuple[Optimization, ...]:
        """Those of `preset`; without its engine on a GPU in float32, where only diffusers' own forward runs."""
        import torch

        exact = self._pipe.transformer.dtype == torch.float32 and self._pipe._execution_device.type == "cuda"
        return () if exact and preset == "faithful" else find_preset(preset).optimizations

    def _announce(self, runner: PathRunner) -> None:
        """State the work ahead, from the time of one batch."""
        batch = self._batches["fit"][0]
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

    def _evaluations_ahead(self) -> int:
        request, parts = self._request, self._parts
        converged = request.target == "converged"
        extra = 0 if converged else request.steps
        total = len(parts.fit) * (request.grid + extra) + len(parts.choose) * (request.steps + request.grid)
        fine = request.reference + request.reference // 2 + request.reference // 4 + request.steps
        total += len(parts.held_out) * (request.steps + (fine if converged else 0))
        compared = 6
        for number in self._numbers:
            total += number * (2 * (len(parts.fit) + len(parts.choose)) + compared * len(parts.held_out))
        return total

    def _batched(self, part: Part) -> list[Part]:
        """Neighbours of one size, as many as one call takes."""
        most = self._request.images_per_call or self._default_images_per_call()
        batches: list[Part] = []
        for item, seed in zip(part.items, part.seeds, strict=True):
            last = batches[-1] if batches else None
            if last and len(last) < most and self._size_of(last.items[0]) == self._size_of(item):
                batches[-1] = Part([*last.items, item], [*last.seeds, seed])
            else:
                batches.append(Part([item], [seed]))
        return batches

    def _default_images_per_call(self) -> int:
        if sum(parameter.numel() for parameter in self._pipe.transformer.parameters()) >= _SMALL_PARAMETERS:
            return 1
        return 64 if self._pipe._execution_device.type == "cuda" else 16

    def _size_of(self, item: Any) -> str:
        plan = plan_for(self._pipe, item.image.size, self._request.size)
        return f"{plan.width}x{plan.height}"

    def _description(self) -> dict[str, Any]:
        """Everything that what is computed depends on."""
        parts = {
            name: hashlib.sha256(
                repr([(item.id, seed) for item, seed in zip(part.items, part.seeds, strict=True)]).encode()
            ).hexdigest()
            for name, part in vars(self._parts).items()
        }
        request = {name: value for name, value in asdict(self._request).items() if name != "evaluations"}
        weights: WeightIdentity = self._identity
        return {"parts": parts, **request, "weights": weights.model_dump(), "dtype": str(self._pipe.transformer.dtype)}


def _always(solver: Solver) -> Rule:
    return lambda _: solver


def _dumped(fit: Callable[[], Solver]) -> Any:
    return fit().model_dump(mode="json")


def _final(runner: PathRunner, batch: Part, rule: Rule) -> dict[str, npt.NDArray[Any]]:
    return {"final": _numpy(runner.run(batch.items, batch.seeds, rule))}


def _numpy(latents: Tensor) -> npt.NDArray[np.float32]:
    return np.asarray(latents.float().cpu().numpy())


def _joined(batches: Sequence[Mapping[str, npt.NDArray[Any]]], name: str) -> npt.NDArray[Any]:
    return np.concatenate([batch[name] for batch in batches])


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())
