"""How long a job will take, from how long earlier ones took.

A mean and a mean deviation are kept per kind of job and follow the newest samples, as TCP estimates a round trip
(Jacobson, "Congestion Avoidance and Control", 1988; RFC 6298). A kind that was never run is scaled from the most
similar one that was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from kontext_fast.server.jobs import Job

_GAIN = 1 / 8
_DEVIATION_GAIN = 1 / 4
_FIRST_DEVIATION = 1 / 8
"""Of the first sample's time."""
_DEVIATIONS = 4
_MOST_KINDS = 256
"""Clients choose the kinds, so there must be an end to what is kept of them."""


@dataclass(frozen=True)
class JobKind:
    """What the time of one image depends on."""

    preset: str
    steps: int
    passes: int
    """Through the transformer per step: two with true CFG."""
    tokens: int
    """Of text, image and reference."""
    previews: int = 0

    @classmethod
    def of(cls, job: Job) -> JobKind:
        request, size = job.request, job.size
        return cls(
            preset=job.preset,
            steps=request.steps,
            passes=2 if request.true_cfg > 1 else 1,
            tokens=size.text_tokens + size.image_tokens + size.reference_tokens,
            previews=job.previews,
        )

    @property
    def work(self) -> int:
        """What the time is taken to be proportional to where nothing better is known."""
        return self.steps * self.passes * self.tokens


@dataclass
class _Timing:
    mean: float
    deviation: float

    def add(self, seconds: float) -> None:
        self.deviation += _DEVIATION_GAIN * (abs(seconds - self.mean) - self.deviation)
        self.mean += _GAIN * (seconds - self.mean)


@dataclass(frozen=True)
class Estimate:
    """Seconds of one job."""

    mean: float
    most: float
    """What it is not expected to exceed."""

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.mean + other.mean, self.most + other.most)

    def __mul__(self, factor: float) -> Estimate:
        return Estimate(self.mean * factor, self.most * factor)


NOTHING = Estimate(0.0, 0.0)


class ServiceTimes:
    """Times of one image by kind of job."""

    def __init__(self) -> None:
        self._timings: dict[JobKind, _Timing] = {}
        """The kind that was added to last stands last."""

    def add(self, kind: JobKind, seconds_per_image: float) -> None:
        timing = self._timings.pop(kind, None)
        if timing is None:
            timing = _Timing(seconds_per_image, _FIRST_DEVIATION * seconds_per_image)
        else:
            timing.add(seconds_per_image)
        self._timings[kind] = timing
        if len(self._timings) > _MOST_KINDS:
            del self._timings[next(iter(self._timings))]

    def of(self, job: Job) -> Estimate | None:
        """The expected time of all images of `job`; None before anything was timed."""
        kind = JobKind.of(job)
        known = kind if kind in self._timings else self._most_similar(kind)
        if known is None:
            return None
        timing = self._timings[known]
        scale = job.images * kind.work / known.work
        return Estimate(timing.mean, timing.mean + _DEVIATIONS * timing.deviation) * scale

    def _most_similar(self, kind: JobKind) -> JobKind | None:
        def distance(other: JobKind) -> tuple[bool, float]:
            return other.preset != kind.preset, abs(math.log(other.work / kind.work))

        return min(self._timings, key=distance, default=None)
