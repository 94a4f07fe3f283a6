"""What to tune to, and the numbers that a tuning came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kontext_fast.engine.solver import Solver
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.fitted_for import Target
from kontext_fast.pipeline.edit import EditRequest
from kontext_fast.pipeline.sizes import Size
from kontext_fast.tuning.precisions import PRESETS, Mixture, Precision
from kontext_fast.tuning.proof import Verdict, as_data, ratio
from kontext_fast.verify.converged import Array, Closeness
from kontext_fast.verify.converged_reference import REFERENCE_STEPS

AS_ACCURATE = (16, 14, 12, 11, 10, 9, 8, 7, 6)
"""Numbers of evaluations that `as_accurate` asks about, in this order."""
AS_ACCURATE_CONFIDENCE = 0.99
"""Of each answer: five precisions of `auto` are wrong in 5 % of all tunings together, and other items will most likely
say the same of a single one."""


@dataclass(frozen=True, kw_only=True)
class TuneRequest:
    """What to tune to. Raises InvalidInput on creation."""

    evaluations: tuple[int, ...] = (10,)
    as_accurate: bool = False
    """Whether to go down AS_ACCURATE as long as a number is no farther from the converged reference than baseline,
    instead of fitting all `evaluations`."""
    seconds: float | None = None
    """What an edit may take: the largest number of evaluations that does is fitted, instead of `evaluations`."""
    precision: Precision = "bf16"
    target: Target = "converged"
    steps: int = 28
    """What a call asks for."""
    guidance: float = 2.5
    size: Size | None = None
    grid: int = 112
    """Steps of the dense paths that are fitted to."""
    reference: int = REFERENCE_STEPS
    """Steps of the finer of the two paths behind the converged reference; an even number."""
    images_per_call: int | None = None

    def __post_init__(self) -> None:
        EditRequest("-", steps=self.steps, guidance=self.guidance, size=self.size)
        if self.precision not in (*PRESETS, "auto"):
            raise InvalidInput(
                f"There is no precision {self.precision!r} to tune in; choose {', '.join(PRESETS)} or auto."
            )
        if self.precision == "auto" and self.seconds is None and not self.as_accurate:
            raise InvalidInput(
                "The precision auto is chosen by what an edit takes: add seconds or as_accurate (--seconds S or "
                "--as-accurate), or choose bf16 or fp8."
            )
        if not self.evaluations or min(self.evaluations) < 2:
            raise InvalidInput("A solver has at least 2 evaluations; give for example evaluations=(7, 10).")
        if max(self.evaluations) > self.most_evaluations:
            raise InvalidInput(
                f"{max(self.evaluations)} evaluations are too many to choose from {self.grid} noise levels; give "
                f"{self.most_evaluations} at most."
            )
        if self.reference % 2 or 2 * self.reference < self.steps:
            raise InvalidInput(
                f"The reference has {self.reference} steps and needs an even number of at least half of {self.steps}."
            )
        if self.as_accurate and self.target != "converged":
            raise InvalidInput("as_accurate compares with the converged reference; leave target out.")
        if self.as_accurate and self.steps <= min(AS_ACCURATE):
            raise InvalidInput(
                f"as_accurate looks for fewer evaluations than the {self.steps} steps, from {min(AS_ACCURATE)} on; ask "
                "for more steps, or name the evaluations."
            )
        if self.seconds is not None and self.as_accurate:
            raise InvalidInput("The seconds and as_accurate both decide the number of evaluations; give one of them.")
        if self.seconds is not None and not self.seconds > 0:
            raise InvalidInput(f"The edit may take {self.seconds:g} seconds; give a number above 0.")

    @property
    def most_evaluations(self) -> int:
        return self.grid // 3


@dataclass(frozen=True)
class Point:
    """One number of evaluations on the held-out items."""

    mixture: Mixture
    solver: Solver
    verdict: Verdict
    closeness: Closeness | None
    """To the converged reference, against baseline in float32; None where that is not the target."""
    distances: Mapping[str, Array]
    """By name, [items]: `fitted` and the schemes of as many evaluations, to the target of the fit."""

    @property
    def evaluations(self) -> int:
        return self.mixture.evaluations

    @property
    def as_accurate(self) -> bool:
        return self.closeness is Closeness.NO_FARTHER

    def as_data(self, baseline: Mapping[str, Array]) -> dict[str, Any]:
        """JSON-ready, with the ratio of `fitted` to each scheme, and to `baseline` where that has other distances."""
        fitted = self.distances["fitted"]
        others = {**self.distances, **{name: baseline[name] for name in baseline if name != REFERENCE_ERROR}}
        ratios = {name: ratio(fitted, other) for name, other in others.items() if name != "fitted"}
        return {
            "evaluations": self.evaluations,
            "precision": self.mixture.words,
            "verdict": self.verdict.value,
            "closeness": None if self.closeness is None else self.closeness.value,
            "distances": as_data(self.distances),
            "ratio_of_fitted_to": {
                name: {"value": estimate.value, "interval": estimate.interval} for name, estimate in ratios.items()
            },
        }


AS_RUN, IN_FLOAT32, REFERENCE_ERROR = "as diffusers runs it", "in float32", "reference error"


@dataclass
class TuneResult:
    """What a tuning found."""

    folder: Path
    request: TuneRequest
    points: list[Point] = field(default_factory=list)
    baseline: dict[str, Array] = field(default_factory=dict)
    """Distances of what is compared with every point: the computed steps of presets; and where the target is the
    converged reference, the steps that a call asks for, as diffusers runs them and in float32, and `reference error`,
    its own."""
    seconds: Mapping[int, float] = field(default_factory=dict)
    """Of an edit, by number of evaluations, where that decided the number."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    """What `as_accurate` was told of each number, in order; JSON-ready."""
    files: list[Path] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """What was fitted, on how many items; JSON-ready."""

    def file_of(self, point: Point) -> Path | None:
        """The preset file of `point`; None where it did not pass."""
        return next((file for file in self.files if file.name == f"{point.evaluations}.toml"), None)

    def as_data(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **self.facts,
            "target": self.request.target,
            "baseline": as_data(self.baseline),
            "points": [point.as_data(self.baseline) for point in self.points],
            "asked": self.asked,
            "seconds": {str(number): seconds for number, seconds in self.seconds.items()},
            "files": [file.name for file in self.files],
        }

    def samples(self) -> dict[str, Any]:
        """The distances themselves, JSON-ready: [items] by name, of baseline and by number of evaluations."""
        return {
            "baseline": {name: values.tolist() for name, values in self.baseline.items()},
            **{
                str(point.evaluations): {name: values.tolist() for name, values in point.distances.items()}
                for point in self.points
            },
        }
