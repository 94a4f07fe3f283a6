"""Estimates of how long a job takes."""

from __future__ import annotations

import pytest

from kontext_fast.server.estimate import JobKind, ServiceTimes
from tests.server.jobs import job


def test_nothing_is_estimated_before_a_sample() -> None:
    assert ServiceTimes().of(job()) is None


def test_known_kind_is_estimated_by_its_mean() -> None:
    times = ServiceTimes()
    for _ in range(50):
        times.add(JobKind.of(job()), 2.0)
    estimate = times.of(job(images=3))
    assert estimate is not None
    assert estimate.mean == pytest.approx(6.0)
    assert estimate.most == pytest.approx(6.0, rel=0.01)


def test_estimate_follows_a_slower_machine() -> None:
    times = ServiceTimes()
    for seconds in (1.0,) * 20 + (3.0,) * 40:
        times.add(JobKind.of(job()), seconds)
    estimate = times.of(job())
    assert estimate is not None
    assert estimate.mean == pytest.approx(3.0, abs=0.1)


def test_unknown_kind_is_scaled_from_the_most_similar() -> None:
    times = ServiceTimes()
    times.add(JobKind.of(job(steps=4)), 4.0)
    times.add(JobKind.of(job(steps=40)), 44.0)
    estimate = times.of(job(steps=5))
    assert estimate is not None
    assert estimate.mean == pytest.approx(5.0)


def test_own_preset_is_preferred_to_a_nearer_size() -> None:
    times = ServiceTimes()
    times.add(JobKind.of(job(preset="fast", steps=8)), 1.0)
    times.add(JobKind.of(job(preset="baseline", steps=4)), 4.0)
    estimate = times.of(job(preset="fast", steps=4))
    assert estimate is not None
    assert estimate.mean == pytest.approx(0.5)


def test_kinds_that_are_kept_are_bounded() -> None:
    times = ServiceTimes()
    for steps in range(1, 400):
        times.add(JobKind.of(job(steps=steps)), float(steps))
    assert len(times._timings) <= 256
