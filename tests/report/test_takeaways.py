"""What the page says first is computed from the records, and says no more than they allow."""

from __future__ import annotations

from pathlib import Path

from kontext_fast.analysis.ranking import slow_to_fast
from kontext_fast.records.schema import CONTROL, Record
from kontext_fast.records.store import ResultStore
from kontext_fast.report.text.takeaways import takeaways, title
from tests.cost.gpu_records import gpu_result, gpu_run
from tests.records.builder import full, record, result, timed
from tests.report.reports import report_of


def test_takeaways_of_gpu_records_have_all_numbers() -> None:
    report = report_of(gpu_result())
    assert title(report.lead) == "classic: 2.500x as fast on NVIDIA H200"
    speed, quality, memory, saved = takeaways(report)
    assert speed.value == "2.500x as fast"
    assert "10.2" in speed.detail
    assert "4.08" in speed.detail
    assert quality.value == "not measured"
    assert "random" in quality.detail
    assert memory.value == "36.0 GiB"
    assert report.lead is not None
    price = report.lead.cost.price
    assert price is not None
    worth = 10_000 * (10.2 - 4.08) / 3600 - (204 + 31 - 4.08 - (12 + 31 - 10.2)) / 3600
    assert saved.value == f"${worth * price.usd_per_gpu_hour * 365 / 12:,.0f}"
    assert price.id in saved.detail
    assert str(price.day) in saved.detail
    runs = {f"{preset}-{round_}" for preset in ("baseline", "classic") for round_ in range(3)}
    assert {run_id for one in (speed, quality, memory, saved) for run_id in one.run_ids} == runs


def test_takeaways_of_cpu_records_have_no_price(tmp_path: Path) -> None:
    report = report_of(full(ResultStore(tmp_path)))
    found = {one.name: one for one in takeaways(report)}
    assert found["Quality"].value == "50 % accepted"
    assert "baseline 100 %" in found["Quality"].detail
    assert found["Saved a month"].value == "no price"
    assert "no price for this machine" in found["Saved a month"].detail


def test_unproven_speedup_is_no_headline() -> None:
    alike = result([timed(name, r, [1.0, 1.0 + 0.05 * r]) for r in range(3) for name in ("baseline", "cache")])
    for records in (alike, result([]), result([record("baseline", 0, status="crash", reason="gone")])):
        report = report_of(records)
        assert takeaways(report) == ()
        assert title(report.lead) == "How fast, and what it cost the image"


def test_rows_are_ranked_baseline_first_failed_last() -> None:
    runs: list[Record] = []
    for name in ("classic", "compile", "baseline"):
        runs.append(gpu_run(name, 0, order=len(runs)))
    runs.append(gpu_run("baseline", 0, order=8).model_copy(update={"preset": CONTROL, "run_id": "again"}))
    runs.append(record("gone", 0, status="crash", reason="gone", checkpoint=None, environment={}, order=9))
    lead = report_of(result(runs)).lead
    assert lead is not None
    wanted = ["baseline", CONTROL, "compile", "classic", "gone"]
    assert [row.preset for row in lead.rows] == wanted
    assert [row.preset for row in lead.stages] == wanted[:-1]
    assert [row.preset for row in slow_to_fast(reversed(lead.rows))] == wanted
