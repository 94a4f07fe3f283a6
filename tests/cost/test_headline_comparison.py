"""Which preset stands for a machine: the cheapest of ours whose time supports a claim."""

from __future__ import annotations

from dataclasses import replace

from kontext_fast.analysis.benchmark import analyze_benchmark
from kontext_fast.cost.analysis import Question, group_cost
from kontext_fast.cost.billing import Demand
from kontext_fast.cost.headline_comparison import _cheapest
from kontext_fast.cost.prices import load_prices
from kontext_fast.cost.work import PresetWork
from tests.cost.gpu_records import ROUNDS, TODAY, gpu_result


def works(rounds: int) -> dict[str, PresetWork]:
    (group,) = analyze_benchmark(gpu_result(rounds=rounds))
    question = Question(demand=Demand(images_per_day=1), today=TODAY, price="2.0")
    return {work.preset: work for work in group_cost(group, load_prices(), question).works}


def test_cheapest_is_ours_and_supports_a_claim_where_one_does() -> None:
    several, single = works(ROUNDS), works(1)
    compiled, classic = several["compile"], several["classic"]
    peer = replace(classic, row=replace(classic.row, preset="peer:other"))
    assert _cheapest([compiled, classic, classic, several["baseline"]]) is classic
    assert _cheapest([compiled, single["classic"]]) is compiled
    assert _cheapest([single["compile"], single["classic"]]) is single["classic"]
    assert _cheapest([peer, single["compile"]]) is single["compile"]
    assert _cheapest([several["baseline"], peer]) is peer
    assert _cheapest([several["baseline"], replace(classic, work=None)]) is None
