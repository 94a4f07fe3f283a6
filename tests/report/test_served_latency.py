"""The chart of a load test, and what `kontext cost` makes of it, from requests whose fate is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kontext_fast.analysis.benchmark import analyze_benchmark
from kontext_fast.cost.analysis import Question, group_cost
from kontext_fast.cost.billing import Demand
from kontext_fast.cost.prices import load_prices
from kontext_fast.cost.work import AS_SERVED
from kontext_fast.records.schema import LoadTest, Record, ServedRequest
from kontext_fast.records.store import ResultStore
from kontext_fast.report.charting import write_charts
from kontext_fast.report.charts.benchmark import served_latency
from kontext_fast.report.output.page import render
from tests.cost.gpu_records import TODAY
from tests.records.builder import result, timed
from tests.report.reports import report_of

SERVED, REFUSED = 180, 20
QUESTION = Question(demand=Demand(images_per_day=3600), today=TODAY, price="2.0")


def load_record(*, served: int = SERVED) -> Record:
    """200 requests in 400 s of one card, busy for 300 s; the images came after 1 to 3 s and the deadline is 2.5 s."""
    latencies = [1 + 2 * number / (SERVED - 1) for number in range(served)]
    requests = [
        ServedRequest(at_s=2.0 * number, latency_s=latency, status=200, images=1, queue_s=0.1, run_s=1.5)
        for number, latency in enumerate(latencies)
    ] + [ServedRequest(at_s=2.0 * number, latency_s=0.01, status=429) for number in range(REFUSED)]
    test = LoadTest(
        rate_per_s=0.5,
        duration_s=400.0,
        deadline_s=2.5,
        seed=0,
        workers=1,
        busy_s=300.0,
        requests=tuple(requests),
        probes_s=(0.001,) * 700,
    )
    return timed("turbo", 0, [1.5, 1.5]).model_copy(update={"load_test": test})


def test_line_ends_at_the_share_that_was_served() -> None:
    (panel,) = served_latency.plotted(report_of(result([load_record()])))
    assert (len(panel.latencies_s), panel.requests) == (SERVED, SERVED + REFUSED)
    assert panel.latencies_s == tuple(sorted(panel.latencies_s))
    assert (panel.deadline_s, panel.alone_s) == (2.5, 1.5)
    in_time = sum(latency <= 2.5 for latency in panel.latencies_s)
    chart = served_latency.draw(report_of(result([load_record()])))
    assert f"{in_time} of 200 requests served in time at 75 % load" in chart.takeaway


def test_chart_stands_in_the_serving_section(tmp_path: Path) -> None:
    report = report_of(result([load_record()]))
    charts = write_charts(report, tmp_path)
    (chart,) = (chart for chart in charts if chart.title == served_latency.TITLE)
    assert (tmp_path / served_latency.FILE).is_file()
    page = render(report, charts, ResultStore(tmp_path))
    serving = page.partition('<section id="serving">')[2].partition("</section>")[0]
    assert chart.takeaway in serving.replace("&#39;", "'")


def test_benchmark_without_a_load_test_draws_no_chart(tmp_path: Path) -> None:
    chart = served_latency.draw(report_of(result([timed("turbo", 0, [1.5, 1.5])])))
    assert chart.picture is None


def test_card_hours_are_priced_per_image_in_time() -> None:
    (group,) = analyze_benchmark(result([load_record()]))
    (turbo,) = group_cost(group, load_prices(), QUESTION).presets
    in_time = sum(1 + 2 * number / (SERVED - 1) <= 2.5 for number in range(SERVED))
    assert turbo.seconds_per_image is not None
    assert turbo.seconds_per_image.value == pytest.approx(400.0 / in_time)
    assert turbo.seconds_per_image.interval is None
    assert turbo.cost is not None
    assert turbo.cost.per_image.value == pytest.approx(2.0 / 3600 * 400.0 / in_time)
    assert turbo.cost.utilization == pytest.approx(0.75)
    assert AS_SERVED in turbo.labels


def test_fleet_of_a_load_test_has_no_second_headroom() -> None:
    """The idle time of the test is the headroom, so a card is filled to what the test served."""
    (group,) = analyze_benchmark(result([load_record()]))
    question = replace(QUESTION, billing="always-on", demand=Demand(images_per_day=24 * 1100), rho_max=0.5)
    (turbo,) = group_cost(group, load_prices(), question).presets
    assert turbo.cost is not None
    assert turbo.cost.gpus == 1


def test_load_test_without_an_image_is_not_priced() -> None:
    late = load_record()
    assert late.load_test is not None
    late = late.model_copy(update={"load_test": late.load_test.model_copy(update={"deadline_s": 0.5})})
    (group,) = analyze_benchmark(result([late]))
    (turbo,) = group_cost(group, load_prices(), QUESTION).presets
    assert turbo.cost is None
    assert turbo.note == "a load test served no image in time"
