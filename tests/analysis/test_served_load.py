"""What a load test says, from requests whose fate is known."""

from __future__ import annotations

import math

import pytest

from kontext_fast.analysis.served_load import load_summary
from kontext_fast.records.schema import LoadTest, ServedRequest


def load_test(requests: list[ServedRequest], *, workers: int = 1, busy_s: float = 50.0) -> LoadTest:
    return LoadTest(
        rate_per_s=1.0,
        duration_s=100.0,
        deadline_s=5.0,
        seed=0,
        workers=workers,
        busy_s=busy_s,
        requests=tuple(requests),
        probes_s=(0.001,) * 700,
    )


def served(latency_s: float, images: int = 1) -> ServedRequest:
    return ServedRequest(at_s=0, latency_s=latency_s, status=200, images=images, queue_s=latency_s / 2, run_s=0.5)


def test_every_fate_is_counted_once() -> None:
    requests = [
        served(1.0),
        served(9.0),
        ServedRequest(at_s=0, latency_s=0.1, status=429),
        ServedRequest(at_s=0, latency_s=0.1, status=429),
        ServedRequest(at_s=0, latency_s=0.1, status=None),
        ServedRequest(at_s=0, latency_s=0.1, status=None, left=True),
    ]
    summary = load_summary(load_test(requests))
    assert (summary.requests, summary.served, summary.in_time, summary.left) == (6, 2, 1, 1)
    assert summary.failures == {"429": 2, "no answer": 1}


def test_goodput_counts_images_in_time_only() -> None:
    summary = load_summary(load_test([served(1.0, images=2), served(4.9), served(5.1)], workers=2))
    assert summary.goodput_per_s == pytest.approx(0.03)
    assert summary.images_per_card_hour == pytest.approx(3600 * 3 / 200)
    assert summary.busy_share == pytest.approx(0.25)


def test_percentiles_have_intervals() -> None:
    summary = load_summary(load_test([served(float(latency)) for latency in range(1, 201)]))
    assert summary.latency_p50 is not None
    assert summary.latency_p95 is not None
    assert (summary.latency_p50.seconds, summary.latency_p95.seconds) == (100.0, 190.0)
    assert 80 < summary.latency_p50.lower < 100 < summary.latency_p50.upper < 120
    assert summary.latency_p95.upper < 200


def test_few_values_have_no_upper_bound() -> None:
    summary = load_summary(load_test([served(1.0), served(2.0)]))
    assert summary.latency_p95 is not None
    assert math.isinf(summary.latency_p95.upper)
    assert "unknown" in "\n".join(summary.lines())


def test_nothing_served_is_said() -> None:
    summary = load_summary(load_test([ServedRequest(at_s=0, latency_s=0.1, status=503)]))
    assert summary.latency_p50 is None
    assert summary.goodput_per_s == 0
    assert "1 x 503" in summary.lines()[0]
