"""What the page says first is computed from the records, and says no more than they allow."""

from __future__ import annotations

from pathlib import Path

from kontext_fast.analysis.ranking import slow_to_fast
from kontext_fast.records.schema import CONTROL, Record
from kontext_fast.records.store import ResultStore
from kontext_fast.report.text.answers import UNPROVEN, answers, choices, headline
from tests.cost.gpu_records import gpu_result, gpu_run
from tests.records.builder import full, record, result, timed
from tests.report.reports import report_of
from tests.verify.synthetic_results import noisy, verification


def test_answers_of_gpu_records_have_all_numbers() -> None:
    report = report_of(gpu_result())
    assert headline(report.lead) == "An edit in 4.08 s instead of 10.2 s on H200"
    fast, good, saves, use = answers(report)
    assert fast.value == "2.500x as fast"
    assert fast.detail.startswith("classic, ")
    assert good.value == "not measured"
    assert "kontext verify" in good.detail
    assert report.lead is not None
    price = report.lead.cost.price
    assert price is not None
    worth = 10_000 * (10.2 - 4.08) / 3600 - (204 + 1 - 4.08 - (12 + 1 - 10.2)) / 3600
    assert saves.value == f"${worth * price.usd_per_gpu_hour * 365 / 12:,.0f} a month"
    assert price.id in saves.detail
    assert str(price.day) in saves.detail
    assert use.value == 'accelerate(pipe, "classic")'
    assert "36.0 GiB of memory" in use.detail


def test_memory_of_the_answer_is_that_of_the_process() -> None:
    """It decides what fits on a card; torch allocated less of it."""
    runs = [
        gpu_run(preset, round_, peak_gib=25, process_gib=35.6)
        for round_ in range(3)
        for preset in ("baseline", "classic")
    ]
    _, _, _, use = answers(report_of(result(runs)))
    assert use.detail.startswith("35.6 GiB of memory (GPU, whole process, 25.0 GiB of it allocated by torch)")
    assert "fits a 40 GB card" in use.detail


def test_answers_of_cpu_records_have_no_price(tmp_path: Path) -> None:
    report = report_of(full(ResultStore(tmp_path)))
    _, good, saves, _ = answers(report)
    assert good.value == "50 % accepted"
    assert saves.value == "no price"


def test_verdict_on_other_weights_names_both(tmp_path: Path) -> None:
    """One sentence for the weights that were judged, one for those that were timed; neither contradicts the other."""
    verified = verification(tmp_path / "v", {"classic": noisy(0.5)}, items=6, control_items=4).folder
    _, good, *_ = answers(report_of(gpu_result(), verified))
    assert good.value == "undecided by 6 edits of tiny"
    assert "On FLUX weights: not measured" in good.detail
    assert "6 edits" in good.detail


def test_choices_are_our_presets_slow_to_fast() -> None:
    assert [choice.row.preset for choice in choices(report_of(gpu_result()))] == ["compile", "classic"]


def test_unproven_speedup_is_no_headline() -> None:
    alike = result([timed(name, r, [1.0, 1.0 + 0.05 * r]) for r in range(3) for name in ("baseline", "cache")])
    for records in (alike, result([]), result([record("baseline", 0, status="crash", reason="gone")])):
        report = report_of(records)
        assert answers(report) == ()
        assert headline(report.lead) == UNPROVEN


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
