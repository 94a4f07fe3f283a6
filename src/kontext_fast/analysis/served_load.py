"""What a load test of a server says: latencies, goodput, failures, and how busy the cards were."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kontext_fast.analysis import format as fmt
from kontext_fast.records.schema import LoadTest, ServedRequest
from kontext_fast.stats.bounds import quantile_bounds

_CONFIDENCE = 0.975
"""Of each side: the two bounds of a percentile make an interval of 95 %."""
_HOUR_S = 3600.0
_OK = 200


@dataclass(frozen=True)
class Percentile:
    """A percentile of seconds and its 95 % interval; a bound is infinite where there are too few values for one."""

    seconds: float
    lower: float
    upper: float

    def __str__(self) -> str:
        low, high = (fmt.seconds(bound) if math.isfinite(bound) else "unknown" for bound in (self.lower, self.upper))
        return f"{fmt.seconds(self.seconds)} ({low} to {high})"


@dataclass(frozen=True)
class LoadSummary:
    """Percentiles are None where there is nothing to take one of."""

    requests: int
    served: int
    in_time: int
    """Of those served, by the deadline."""
    left: int
    failures: Mapping[str, int]
    """By status, or `no answer`."""
    latency_p50: Percentile | None
    latency_p95: Percentile | None
    latency_p99: Percentile | None
    queue_p95: Percentile | None
    goodput_per_s: float
    """Images that were served by the deadline, per second of the test."""
    busy_share: float
    """Of the time of all workers."""
    images_per_card_hour: float
    """Images served in time per hour of a card that was held, busy or not."""
    probe_p99: Percentile | None

    def lines(self) -> list[str]:
        """The summary in lines for people."""
        failed = ", ".join(f"{count} x {name}" for name, count in self.failures.items()) or "none"
        return [
            f"requests: {self.requests}, served {self.served}, {self.in_time} of them in time; clients that left: "
            f"{self.left}; failures: {failed}",
            f"latency with 95 % intervals: p50 {self.latency_p50}, p95 {self.latency_p95}, p99 {self.latency_p99}; "
            f"in the queue p95 {self.queue_p95}",
            f"goodput: {self.goodput_per_s:.3f} images/s, {self.images_per_card_hour:.0f} images per card-hour; cards "
            f"busy {100 * self.busy_share:.1f} % of the time",
            f"livez: p99 {self.probe_p99}",
        ]


def served_requests(test: LoadTest) -> list[ServedRequest]:
    """Those that were answered with their images, by the deadline or later."""
    return [request for request in test.requests if request.status == _OK]


def load_summary(test: LoadTest) -> LoadSummary:
    """The numbers of one load test."""
    served = served_requests(test)
    in_time = [request for request in served if request.latency_s <= test.deadline_s]
    latencies = [request.latency_s for request in served]
    images = sum(request.images for request in in_time)
    failures = Counter(_failure(request) for request in test.requests if request.status != _OK and not request.left)
    return LoadSummary(
        requests=len(test.requests),
        served=len(served),
        in_time=len(in_time),
        left=sum(request.left for request in test.requests),
        failures=dict(sorted(failures.items())),
        latency_p50=_percentile(latencies, 0.50),
        latency_p95=_percentile(latencies, 0.95),
        latency_p99=_percentile(latencies, 0.99),
        queue_p95=_percentile([request.queue_s for request in served if request.queue_s is not None], 0.95),
        goodput_per_s=images / test.duration_s,
        busy_share=test.busy_s / (test.duration_s * test.workers),
        images_per_card_hour=_HOUR_S * images / (test.duration_s * test.workers),
        probe_p99=_percentile(test.probes_s, 0.99),
    )


def _failure(request: ServedRequest) -> str:
    return "no answer" if request.status is None else str(request.status)


def _percentile(values: Sequence[float], share: float) -> Percentile | None:
    return Percentile(*quantile_bounds(values, share, _CONFIDENCE)) if values else None
