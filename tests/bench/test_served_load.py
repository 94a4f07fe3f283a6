"""An open-loop load on a real server over real connections, whose worker runs a script in place of a model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kontext_fast.analysis.benchmark import analyze_benchmark
from kontext_fast.analysis.served_load import load_summary
from kontext_fast.bench.served_load import LoadPlan, run_load, service_seconds
from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import LoadTest, Record
from kontext_fast.records.store import ResultStore
from tests.server.processes import scripted_server
from tests.server.scripted_worker import STEP_S


def loaded(plan: LoadPlan, **settings: object) -> tuple[Record, LoadTest]:
    with scripted_server(**settings) as url:
        (record,) = asyncio.run(run_load(url, plan)).records
    assert record.load_test is not None
    return record, record.load_test


def test_every_arrival_is_answered_and_recorded(tmp_path: Path) -> None:
    plan = LoadPlan(rate_per_s=5, seconds=3, deadline_s=60, seed=1)
    with scripted_server() as url:
        alone = asyncio.run(service_seconds(url, plan))
        result = asyncio.run(run_load(url, plan))
    assert alone >= 2 * STEP_S
    ResultStore(tmp_path).write(result)
    (record,) = ResultStore(tmp_path).load().records
    test = record.load_test
    assert test is not None
    due = [request.at_s for request in test.requests]
    assert due == sorted(due)
    assert 5 <= len(due) <= 30
    assert {request.status for request in test.requests} == {200}
    assert all(request.latency_s >= (request.run_s or 0) for request in test.requests)
    assert 0 < load_summary(test).busy_share <= 1
    assert len(test.probes_s) > 3
    (measured,) = record.measurements
    assert [sample.seed for sample in measured.samples] == list(measured.workload.seeds)
    assert len(measured.samples) == len(due)
    assert (record.preset, record.status) == ("baseline", "ok")
    (group,) = analyze_benchmark(ResultStore(tmp_path).load())
    assert group.presets == ("baseline",)


def test_arrivals_do_not_wait_for_answers() -> None:
    """At five times what the server can do, requests come at their times, and most are refused at once."""
    _, test = loaded(LoadPlan(rate_per_s=50, seconds=2, deadline_s=60, seed=2), queue=2)
    summary = load_summary(test)
    assert 60 <= summary.requests <= 140
    assert summary.failures["429"] > summary.requests / 2
    assert summary.served >= 3


def test_clients_that_leave_are_no_failures() -> None:
    _, test = loaded(LoadPlan(rate_per_s=10, seconds=2, deadline_s=60, leaving_share=0.9, steps=20), queue=64)
    summary = load_summary(test)
    assert summary.left > 0
    assert summary.left + summary.served + sum(summary.failures.values()) == summary.requests


def test_same_seed_draws_the_same_arrivals() -> None:
    plan = LoadPlan(rate_per_s=20, seconds=1, deadline_s=60, seed=3)
    with scripted_server() as url:
        first, second = (asyncio.run(run_load(url, plan)).records[0].load_test for _ in range(2))
    assert first is not None
    assert second is not None
    assert [request.at_s for request in first.requests] == [request.at_s for request in second.requests]


def test_no_server_is_said_in_words() -> None:
    with pytest.raises(InvalidInput, match="kontext serve"):
        asyncio.run(run_load("http://127.0.0.1:9", LoadPlan(rate_per_s=1, seconds=1, deadline_s=1)))


def test_impossible_plan_is_refused() -> None:
    with pytest.raises(InvalidInput, match="above 0"):
        LoadPlan(rate_per_s=0, seconds=1, deadline_s=1)
