"""What the page says first is computed from the records, and says no more than they allow."""

from __future__ import annotations

from pathlib import Path

from kontext_fast.analysis.ranking import slow_to_fast
from kontext_fast.cost.prices import load_prices
from kontext_fast.records.schema import CONTROL, Record, ResultFile
from kontext_fast.records.store import ResultStore
from kontext_fast.report.costs import usual_question
from kontext_fast.report.model import Report, build_report
from kontext_fast.report.output.page import takeaways, title
from tests.cost.made_up import TODAY, gpu_result, gpu_run
from tests.records.builder import full, record, result, timed

QUESTION = usual_question(TODAY)


def story(records: ResultFile) -> Report:
    return build_report(records, (), load_prices(), QUESTION)


def test_an_h200_says_speed_quality_memory_and_money() -> None:
    told = story(gpu_result())
    assert title(told.lead) == "classic: 2.500x as fast on NVIDIA H200"
    speed, quality, memory, saved = takeaways(told.lead, QUESTION, {})
    assert speed.value == "2.500x as fast"
    assert "10.2" in speed.detail
    assert "4.08" in speed.detail
    assert quality.value == "not measured"
    assert "random" in quality.detail
    assert memory.value == "36.0 GiB"
    assert told.lead is not None
    price = told.lead.cost.price
    assert price is not None
    worth = 10_000 * (10.2 - 4.08) / 3600 - (204 + 31 - 4.08 - (12 + 31 - 10.2)) / 3600
    assert saved.value == f"${worth * price.usd_per_gpu_hour * 365 / 12:,.0f}"
    assert price.id in saved.detail
    assert str(price.day) in saved.detail
    runs = {f"{preset}-{round_}" for preset in ("baseline", "classic") for round_ in range(3)}
    assert {run_id for one in (speed, quality, memory, saved) for run_id in one.run_ids} == runs


def test_a_cpu_has_judged_edits_and_no_price(tmp_path: Path) -> None:
    told = story(full(ResultStore(tmp_path)))
    found = {one.name: one for one in takeaways(told.lead, QUESTION, {})}
    assert found["Quality"].value == "50 % accepted"
    assert "baseline 100 %" in found["Quality"].detail
    assert found["Saved a month"].value == "no price"
    assert "no price for this machine" in found["Saved a month"].detail


def test_what_may_not_be_called_faster_is_no_headline() -> None:
    alike = result([timed(name, r, [1.0, 1.0 + 0.05 * r]) for r in range(3) for name in ("baseline", "cache")])
    for records in (alike, result([]), result([record("baseline", 0, status="crash", reason="gone")])):
        told = story(records)
        assert takeaways(told.lead, QUESTION, {}) == ()
        assert title(told.lead) == "How fast, and what it cost the image"


def test_rows_go_from_what_is_compared_with_to_the_fastest_and_the_failed() -> None:
    runs: list[Record] = []
    for name in ("classic", "compile", "baseline"):
        runs.append(gpu_run(name, 0, order=len(runs)))
    runs.append(gpu_run("baseline", 0, order=8).model_copy(update={"preset": CONTROL, "run_id": "again"}))
    runs.append(record("gone", 0, status="crash", reason="gone", checkpoint=None, environment={}, order=9))
    lead = story(result(runs)).lead
    assert lead is not None
    wanted = ["baseline", CONTROL, "compile", "classic", "gone"]
    assert [row.preset for row in lead.rows] == wanted
    assert [row.preset for row in lead.stages] == wanted[:-1]
    assert [row.preset for row in slow_to_fast(reversed(lead.rows))] == wanted
