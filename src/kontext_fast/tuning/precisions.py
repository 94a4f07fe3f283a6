"""The precision of each evaluation: which mixtures there are, what they take, and the pipeline that runs them.

The last evaluations need precision most, since what they get wrong nothing after them makes up for; so a mixture has
the blocks in fp8 first, and in the precision of the pipeline in its last evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.presets import Preset, find_preset
from kontext_fast.optimizations.registry import discover
from kontext_fast.pipeline.sizes import Size
from kontext_fast.verify.paths import PathRunner

BlockPrecision = Literal["float32", "bf16", "fp8"]
Precision = Literal["float32", "bf16", "fp8", "auto"]
"""`bf16`: that of the pipeline; `float32`: the same, of a pipeline that has it; `auto`: a mixture, by seconds."""

PRESETS: Mapping[BlockPrecision, str] = {"float32": "faithful", "bf16": "faithful", "fp8": "balanced"}
"""The preset that a precision's solver is added to."""
LAST_IN_FULL = (0, 2, 3, 5)
"""Of a mixture's evaluations, besides all of them."""


@dataclass(frozen=True)
class Mixture:
    """A number of evaluations and the precision of each."""

    evaluations: int
    precision: BlockPrecision
    last_in_full: int = 0
    """Of evaluations in fp8: so many of them, the last ones, are in the precision of the pipeline instead."""

    @property
    def words(self) -> str:
        """Of the blocks, as provenance has it."""
        return self.precision if not self.last_in_full else f"{self.precision}, the last {self.last_in_full} in bf16"

    @property
    def key(self) -> str:
        """Part of a file's name, distinct among those of one tuning."""
        return f"{self.evaluations:02}-{self.precision}-{self.last_in_full}"

    @property
    def preset(self) -> Preset:
        """One that runs the blocks so, without a solver."""
        preset = find_preset(PRESETS[self.precision])
        return preset.replace(full_precision=tuple(range(-self.last_in_full, 0))) if self.last_in_full else preset

    @property
    def optimizations(self) -> tuple[Optimization, ...]:
        """Of that preset, on every device."""
        return self.preset.optimizations


@dataclass(frozen=True)
class EditTimes:
    """Seconds of an edit in one precision: around its evaluations, and of each."""

    around: float
    each: float

    @classmethod
    def of(cls, seconds: Mapping[str, float]) -> EditTimes:
        """From the seconds of edits by two numbers of steps."""
        (fewest, short), (most, long) = sorted((int(steps), value) for steps, value in seconds.items())
        each = (long - short) / (most - fewest)
        return cls(short - fewest * each, each)


def seconds_of(mixture: Mixture, times: Mapping[BlockPrecision, EditTimes]) -> float:
    """Of an edit."""
    own = times[mixture.precision]
    in_full = mixture.last_in_full
    return own.around + own.each * (mixture.evaluations - in_full) + (times["bf16"].each * in_full if in_full else 0.0)


def mixtures_of(evaluations: int) -> list[Mixture]:
    """All of so many evaluations: fp8, fp8 with some in full precision, and bf16."""
    partial = [Mixture(evaluations, "fp8", last) for last in LAST_IN_FULL if last < evaluations]
    return [*partial, Mixture(evaluations, "bf16")]


def longest_within(
    seconds: float, times: Mapping[BlockPrecision, EditTimes], *, most: int, precision: Precision
) -> list[Mixture]:
    """Of each kind of mixture that `precision` allows, the one with the most evaluations that an edit has time for."""
    longest: dict[tuple[str, int], Mixture] = {}
    for evaluations in range(2, most + 1):
        mixtures = mixtures_of(evaluations) if precision == "auto" else [Mixture(evaluations, precision)]
        for mixture in mixtures:
            if seconds_of(mixture, times) <= seconds:
                longest[mixture.precision, mixture.last_in_full] = mixture
    return list(longest.values())


class PathOptions(Protocol):
    """What a runner reads of a tuning's request."""

    @property
    def steps(self) -> int: ...

    @property
    def guidance(self) -> float: ...

    @property
    def size(self) -> Size | None: ...


@contextmanager
def path_runner(
    pipe: Any,
    optimizations: Sequence[Optimization],
    request: PathOptions,
    *,
    items: int,
    on_progress: Callable[[int], None],
    **more: Any,
) -> Iterator[PathRunner]:
    """Runs `items` edits as `request` and `more` fields of an EditRequest say, on `pipe` with these optimizations."""
    # The same inputs come again at every evaluation, so whatever keeps entries of them keeps all.
    caches = [technique(entries=1 + items) for technique in discover().values() if "entries" in technique.model_fields]
    if is_in_float32(pipe) and pipe._execution_device.type == "cuda" and not _quantizes(optimizations):
        # There only diffusers' own forward runs.
        optimizations = ()
    with accelerate(pipe, (*optimizations, *caches), quiet=True):
        runner = PathRunner(
            pipe, steps=request.steps, guidance=request.guidance, size=request.size, on_progress=on_progress, **more
        )
        try:
            yield runner
        finally:
            runner.close()


def is_in_float32(pipe: Any) -> bool:
    """Whether the transformer's weights are, so that nothing is rounded between evaluations."""
    import torch

    return bool(pipe.transformer.dtype == torch.float32)


def _quantizes(optimizations: Sequence[Optimization]) -> bool:
    return any(part.parameters().get("precision", "bf16") != "bf16" for part in optimizations)
