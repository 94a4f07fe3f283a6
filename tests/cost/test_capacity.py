"""The forecast of cards and latencies, against a simulation of the same queue that shares no code with it."""

from __future__ import annotations

import heapq
import json
import math
from dataclasses import replace
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
from kontext_fast.cost.prices import PriceTable, load_prices
from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import EMULATED
from kontext_fast.records.store import ResultStore
from tests.cost.gpu_records import gpu_result, gpu_run, price
from tests.records.builder import record, result, timed

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


def test_latencies_are_those_of_the_closed_form() -> None:
    """Where all that is late has waited: 1 - share = P(waits) * mean(exp((call - latency) / wait)), solved by hand."""
    # Constant calls of 0.1 s at half load: of those that wait, half a call in the mean, over the spare half.
    constant = capacity_of(1, [0.1], 5.0)
    assert (constant.cards, constant.load) == (1, 0.5)
    assert constant.latency_p50_s == pytest.approx(0.1, abs=1e-6)
    assert constant.latency_p95_s == pytest.approx(0.1 + 0.1 * math.log(0.5 / 0.05), rel=1e-5)
    # Calls of 0.05 and 0.15 s: their variance is a quarter of the square of their mean.
    wait_s = (1 + 0.25) / 2 / 5
    expected = wait_s * math.log(0.5 / 0.05 * (math.exp(0.05 / wait_s) + math.exp(0.15 / wait_s)) / 2)
    assert latency_percentile(0.95, 1, [0.05, 0.15], 5.0) == pytest.approx(expected, rel=1e-5)
    # Two cards of which a third waits.
    two = latency_percentile(0.95, 2, [1.0], 1.0)
    assert two == pytest.approx(1 + 0.5 * math.log(1 / 3 / 0.05), rel=1e-5)
    assert erlang_c(3, 2.0) == pytest.approx(4 / 9)


def test_idle_cards_answer_as_fast_as_calls_run() -> None:
    idle = capacity_of(50, [2.0], 0.1)
    assert (idle.latency_p50_s, idle.latency_p95_s) == pytest.approx((2.0, 2.0), rel=1e-2)
    assert latency_percentile(0.5, 1, [1.0], 1e-9) == pytest.approx(1.0, rel=1e-2)
    assert latency_percentile(0.95, 1, [1.0, 2.0], 0.0) == pytest.approx(2.0, rel=1e-5)


def test_calls_longer_than_the_deadline_are_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        cards_for([1.234567, 1.234567], 1.0, 1.1)
    assert str(caught.value) == "5 % of its calls alone take 1.23 s or more, so no number of cards meets 1.1 s."


@pytest.mark.parametrize(
    ("calls", "deadline_s"), [([1.0, 1.0], 1.0), ([1.0, 2.0], 1.96), ([1.0] * 18 + [2.0, 3.0], 2.0)]
)
def test_deadline_that_only_endless_cards_meet_is_refused(calls: list[float], deadline_s: float) -> None:
    with pytest.raises(InvalidInput, match="so no number of cards meets"):
        cards_for(calls, 1.0, deadline_s)
    assert cards_for(calls, 1.0, 1.001 * max(calls)).cards < 100


@pytest.mark.parametrize(
    ("calls", "rate", "deadline_s"),
    [([1.0], 0.001, 50.0), ([1.0], 2.0, 10.0), ([1.0], 20.0, 1.5), ([0.5, 1.5], 50.0, 2.0), ([2.0], 100.0, 2.1)],
)
def test_fewest_cards_that_meet_the_deadline_are_named(calls: list[float], rate: float, deadline_s: float) -> None:
    longest = max(calls)
    for deadline in (deadline_s, 1.3 * longest, 1.2 * longest, 1.1 * longest, 1.05 * longest, 1.02 * longest):
        cards = max(1, math.ceil(rate * np.mean(calls) / MAX_LOAD))
        while latency_percentile(0.95, cards, calls, rate) > deadline:
            cards += 1
        assert cards_for(calls, rate, deadline).cards == cards


def test_more_requests_than_cards_can_run_are_refused() -> None:
    for rate in (2.0, 2.5):
        with pytest.raises(InvalidInput) as caught:
            capacity_of(2, [1.0], rate)
        assert str(caught.value) == f"2 cards cannot run {rate:.3g} requests a second: the queue never ends."


def test_group_is_of_the_asked_card_and_of_single_calls() -> None:
    first, second = (analyze_benchmark(gpu_result(device=name))[0] for name in ("NVIDIA H200", "NVIDIA L40S"))
    assert group_for_capacity([first, second], "L40S") is second
    assert group_for_capacity([first, second], None) in (first, second)
    with pytest.raises(InvalidInput) as caught:
        group_for_capacity([second, first], "H100 PCIe")
    assert str(caught.value) == "Nothing was measured on H100 PCIe there, but on H200, L40S; name one of them."
    (cpu,) = analyze_benchmark(result([timed("baseline", 0, [1.0, 1.0])]))
    with pytest.raises(InvalidInput, match=f"but on {cpu.machine}; name"):
        group_for_capacity([cpu], "H200")
    nothing = "No single calls were measured there: name a folder that kontext bench wrote."
    assert first.workload is not None
    of_two_images = replace(first, workload=first.workload.model_copy(update={"batch": 2}))
    assert group_for_capacity([of_two_images, second], None) is second
    no_machine = replace(cpu, machine=None)
    with pytest.raises(InvalidInput, match="but on an unknown machine; name"):
        group_for_capacity([no_machine], "H200")
    with pytest.raises(InvalidInput) as caught:
        group_for_capacity([], None)
    assert str(caught.value) == nothing


def test_preset_that_cannot_be_planned_says_why() -> None:
    records = result([gpu_run("baseline", 0), gpu_run("classic", 0, labels=(EMULATED,))])
    failed = record("compile", 0, status="refused", reason="There is no compiler: install g++.", checkpoint=None)
    failed = failed.model_copy(update={"environment": {}})
    (group,) = analyze_benchmark(records.model_copy(update={"records": (*records.records, failed)}))
    plans = {plan.preset: plan for plan in plan_capacity(group, Demand(images_per_day=100), 5.0, load_prices())}
    assert plans["classic"].note == "emulated kernel: not a speed"
    assert plans["baseline"].note == "5 % of its calls alone take 10 s or more, so no number of cards meets 5 s."
    assert "install g++" in (plans["compile"].note or "")
    for plan in plans.values():
        assert (plan.capacity, plan.usd_per_month) == (None, {})
    for deadline in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InvalidInput, match=f"A deadline of {deadline} s cannot be met: give a time above 0"):
            plan_capacity(group, Demand(images_per_day=100), deadline, load_prices())


def test_reserved_machines_are_paid_whole() -> None:
    """By every model that has a price; machines of eight cards are not divided."""
    (group,) = analyze_benchmark(gpu_result())
    prices = PriceTable((price(1.0), price(8.0, id="eight", kind="reserved", count=8)))
    plans = {plan.preset: plan for plan in plan_capacity(group, Demand(images_per_day=24 * 9000), 60, prices)}
    classic = plans["classic"]
    assert classic.capacity is not None
    assert classic.note is None
    cards = classic.capacity.cards
    assert cards % 8
    month = 365 / 12
    assert classic.usd_per_month == pytest.approx(
        {
            "by-use": month * 24 * 9000 * 4.08 / 3600,
            "always-on": month * 24 * cards,
            "reserved": month * 24 * 8 * math.ceil(cards / 8),
        }
    )
    assert (
        "reserved" not in plan_capacity(group, Demand(images_per_day=9), 60, PriceTable((price(1.0),)))[0].usd_per_month
    )


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
    assert any("baseline: 5 % of its calls alone take" in line for line in lines)
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
