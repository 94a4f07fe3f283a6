"""The forecast of cards and latencies, against a simulation of the same queue that shares no code with it."""

from __future__ import annotations

import heapq
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kontext_fast.analysis.benchmark import analyze_benchmark
from kontext_fast.cli.main import run
from kontext_fast.cost.billing import Demand
from kontext_fast.cost.capacity import (
    MAX_LOAD,
    capacity_of,
    cards_for,
    erlang_c,
    group_for_capacity,
    latency_percentile,
    plan_capacity,
)
from kontext_fast.cost.prices import load_prices
from kontext_fast.errors import InvalidInput
from kontext_fast.records.store import ResultStore
from tests.cost.gpu_records import gpu_result

RANDOM = np.random.default_rng(0)
CALLS = {
    "nearly constant": 1 + 0.01 * RANDOM.standard_normal(50),
    "spread": RANDOM.lognormal(0, 0.3, 200),
    "two kinds": np.r_[np.ones(90), np.full(10, 4.0)],
}
Times = np.ndarray[Any, np.dtype[np.float64]]


def simulated(cards: int, calls_s: Times, requests_per_s: float, *, requests: int = 60_000) -> Times:
    """Latency of each request after the first tenth: the first free card takes the next one."""
    random = np.random.default_rng(1)
    arrivals = np.cumsum(random.exponential(1 / requests_per_s, requests))
    durations = random.choice(calls_s, requests)
    free = [0.0] * cards
    latencies = np.empty(requests)
    for number, (arrival, duration) in enumerate(zip(arrivals, durations, strict=True)):
        end = max(heapq.heappop(free), arrival) + duration
        heapq.heappush(free, end)
        latencies[number] = end - arrival
    return latencies[requests // 10 :]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("cards", "load"), [(1, 0.5), (1, 0.7), (4, 0.7), (16, 0.85)])
def test_p95_lies_near_the_simulated_one(name: str, cards: int, load: float) -> None:
    calls = CALLS[name]
    rate = load * cards / float(calls.mean())
    expected = float(np.quantile(simulated(cards, calls, rate), 0.95))
    assert latency_percentile(0.95, cards, calls, rate) == pytest.approx(expected, rel=0.1)


def test_thousand_cards_keep_the_simulated_deadline() -> None:
    calls = CALLS["spread"]
    rate = 1000 * 0.88 / float(calls.mean())
    expected = float(np.quantile(simulated(1000, calls, rate, requests=120_000), 0.95))
    assert capacity_of(1000, calls, rate).latency_p95_s == pytest.approx(expected, rel=0.05)


def test_fewest_cards_meet_the_deadline_and_fewer_do_not() -> None:
    calls = CALLS["two kinds"]
    planned = cards_for(calls, 3.0, 5.0)
    assert planned.latency_p95_s <= 5.0
    assert planned.load <= MAX_LOAD
    fewer = planned.cards - 1
    assert 3.0 * calls.mean() / fewer > MAX_LOAD or capacity_of(fewer, calls, 3.0).latency_p95_s > 5.0


def test_one_card_waits_as_often_as_it_is_busy() -> None:
    """Erlang's C formula has known values: one card, and two at load a/2: a^2 / (2 + a)."""
    assert erlang_c(1, 0.4) == pytest.approx(0.4)
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)


def test_calls_longer_than_the_deadline_are_refused() -> None:
    with pytest.raises(InvalidInput, match="no number of cards"):
        cards_for([2.0, 2.0], 1.0, 1.5)


def test_more_requests_than_cards_can_run_are_refused() -> None:
    with pytest.raises(InvalidInput, match="never ends"):
        capacity_of(2, [1.0], 2.5)


def test_fleet_pays_all_day_and_use_pays_what_is_worked() -> None:
    (group,) = analyze_benchmark(gpu_result())
    table, demand = load_prices(), Demand(images_per_day=24 * 900)
    presets = {plan.preset: plan for plan in plan_capacity(group_for_capacity([group], "H200"), demand, 60, table)}
    classic, price = presets["classic"], table.typical("H200", "on-demand")
    assert classic.capacity is not None
    assert price is not None
    month = price.usd_per_gpu_hour * 365 / 12
    seconds = 4.0 * 1.02  # the mean of three rounds
    assert classic.usd_per_month["by-use"] == pytest.approx(month * 24 * 900 * seconds / 3600)
    sold = math.ceil(classic.capacity.cards / price.count) * price.count
    assert classic.usd_per_month["always-on"] == pytest.approx(month * 24 * sold)


def test_command_answers_in_words_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ResultStore(tmp_path).write(gpu_result())
    arguments = ["capacity", str(tmp_path), "--images-per-day", "20000", "--deadline", "8", "--json"]
    assert run(arguments) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    presets = {preset["preset"]: preset for preset in json.loads(last)["presets"]}
    assert presets["baseline"]["capacity"] is None
    assert any("baseline: 5 % of its calls alone take over" in line for line in lines)
    assert presets["classic"]["capacity"]["cards"] >= 2
    assert presets["classic"]["capacity"]["latency_p95_s"] <= 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--images-per-day", "1000", "--deadline", "8", "--card", "L40S"], "measured on L40S there, but on H200"),
        (["--images-per-day", "1000", "--deadline", "0"], "give a time above 0"),
        (["--images-per-day", "-1", "--deadline", "8"], "give a number above 0"),
    ],
)
def test_impossible_question_is_refused(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ResultStore(tmp_path).write(gpu_result())
    assert run(["capacity", str(tmp_path), *options]) == 2
    assert words in capsys.readouterr().err.replace("\n", " ")
