"""Which preset stands for a machine: the cheapest of ours whose time supports a claim."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from kontext_fast.analysis.benchmark import analyze_benchmark
from kontext_fast.cost.analysis import NO_PRICE, Question, group_cost
from kontext_fast.cost.billing import Demand
from kontext_fast.cost.headline_comparison import HeadlineComparison, _cheapest, headline_comparison
from kontext_fast.cost.prices import PriceTable, load_prices
from kontext_fast.cost.work import PresetWork
from kontext_fast.records.schema import ResultFile
from tests.cost.gpu_records import ROUNDS, TODAY, gpu_result, gpu_run
from tests.records.builder import result, timed

QUESTION = Question(demand=Demand(images_per_day=1), today=TODAY)
H100 = "NVIDIA H100 80GB HBM3"


def compared(*records: ResultFile, table: PriceTable | None = None) -> HeadlineComparison | str:
    table = table or load_prices()
    groups = [group for file in records for group in analyze_benchmark(file)]
    question = replace(QUESTION, price="2.0")  # which no comparison takes
    return headline_comparison([group_cost(group, table, question) for group in groups], table, TODAY)


def test_comparison_is_of_baseline_and_the_cheapest() -> None:
    records = result([gpu_run("baseline", 0), gpu_run("compile", 0), gpu_run("classic", 0, labels=("fixed schedule",))])
    shown = compared(records)
    assert isinstance(shown, HeadlineComparison)
    assert (shown.baseline.preset, shown.other.preset, shown.card) == ("baseline", "classic", "H200")
    assert shown.price == load_prices().typical("H200", "on-demand")
    assert (shown.note, shown.stamp, shown.today) == ("fixed schedule", None, TODAY)
    assert shown.runs == "1 run of baseline, 1 of the preset"
    assert shown.subtitle.endswith(", on NVIDIA H200")
    assert replace(shown, today=TODAY + timedelta(days=2000)).stamp == f"stale price of {shown.price.day}"
    saved = shown.savings(QUESTION.demand, shown.tariff("by-use"))
    assert saved.value == pytest.approx(6 / 3600 * shown.price.usd_per_gpu_hour * 365 / 12)


def test_card_that_cannot_be_compared_is_passed_over() -> None:
    here, alone = gpu_result(), result([gpu_run("baseline", 0)])
    unpriced = PriceTable(tuple(row for row in load_prices().rows if row.card != "H100 SXM"))
    leading = result([gpu_run(name, 0, device=H100) for name in ("compile", "classic")])
    two = result([gpu_run(name, 0) for name in ("baseline", "classic")])
    cpu, too_large = result([timed("baseline", 0, [1.0])]), gpu_result(device="NVIDIA GeForce RTX 4090", peak_gib=30.0)
    for comparison, card in (
        (compared(here, gpu_result(device=H100), cpu), "H200"),
        (compared(two, gpu_result(device=H100)), "H100 SXM"),  # more presets lead
        (compared(leading, two), "H200"),
        (compared(gpu_result(device=H100), two, table=unpriced), "H200"),
        (compared(cpu, too_large, two), "H200"),
    ):
        assert isinstance(comparison, HeadlineComparison)
        assert comparison.card == card
    assert compared(alone) == compared(leading) == "no baseline and preset measured on the same workload"
    assert compared(cpu) == compared() == compared(gpu_result(device=H100), table=unpriced) == NO_PRICE
    refused = compared(too_large)
    assert isinstance(refused, str)
    assert "30.0 GiB" in refused
    assert not refused.endswith(".")


def works(rounds: int) -> dict[str, PresetWork]:
    (group,) = analyze_benchmark(gpu_result(rounds=rounds))
    question = replace(QUESTION, price="2.0")
    return {work.preset: work for work in group_cost(group, load_prices(), question).works}


def test_cheapest_is_ours_and_supports_a_claim_where_one_does() -> None:
    several, single = works(ROUNDS), works(1)
    compiled, classic = several["compile"], several["classic"]
    peer = replace(classic, row=replace(classic.row, preset="peer:other"))
    assert _cheapest([compiled, classic, replace(classic, note="again"), several["baseline"]]) is classic
    assert _cheapest([compiled, single["classic"]]) is compiled
    assert _cheapest([single["compile"], single["classic"]]) is single["classic"]
    assert _cheapest([peer, single["compile"]]) is single["compile"]
    assert _cheapest([several["baseline"], peer]) is peer
    assert _cheapest([several["baseline"], replace(classic, work=None)]) is None
