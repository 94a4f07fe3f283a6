from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from kontext_fast.analysis.benchmark import analyze_benchmark
from kontext_fast.analysis.ranking import headline_group_first
from kontext_fast.cost.headline_comparison import HeadlineComparison
from kontext_fast.cost.prices import load_prices
from kontext_fast.records.schema import ResultFile
from kontext_fast.report.charting import write_charts
from kontext_fast.report.charts.benchmark import billing_models, cost_analysis, cost_summary
from tests.cost.gpu_records import gpu_result, gpu_run
from tests.records.builder import result, timed
from tests.report.reports import report_of, written

CHARTS = (cost_summary, cost_analysis, billing_models)
CPU = result([timed("baseline", 0, [1.0, 1.0]), timed("cache", 0, [0.5, 0.5])])


def shown(records: ResultFile) -> HeadlineComparison:
    found = report_of(records).comparison
    assert isinstance(found, HeadlineComparison), found
    return found


def test_cost_charts_show_the_leading_card() -> None:
    """A card with more presets leads, even if another one was measured first."""
    first = [gpu_run(name, r, order=r) for r in range(2) for name in ("baseline", "compile")]
    then = [
        one.model_copy(update={"run_id": f"later {one.run_id}", "round": 10 + one.round, "order": 10 + one.order})
        for one in gpu_result(device="NVIDIA H100 80GB HBM3").records
    ]
    both = result([*first, *then])
    (leading, *_) = headline_group_first(analyze_benchmark(both))
    assert (leading.machine, shown(both).card) == ("NVIDIA H100 80GB HBM3", "H100 SXM")


def test_summary_shows_savings_at_three_volumes() -> None:
    data = cost_summary.plotted(report_of(gpu_result()))
    assert not isinstance(data, str)
    found, bars = data
    price = found.price.usd_per_gpu_hour
    assert [bar.name for bar in bars] == ["1,000 images a day", "10,000 images a day", "100,000 images a day"]
    for bar, volume in zip(bars, (1_000, 10_000, 100_000), strict=True):
        assert bar.usd == pytest.approx(volume * 6.12 / 3600 * price * 365 / 12)
        assert bar.interval is not None
        assert bar.interval[0] < bar.usd < bar.interval[1]


def test_cost_analysis_shows_every_on_demand_price() -> None:
    data = cost_analysis.plotted(report_of(gpu_result()))
    assert not isinstance(data, str)
    prices = load_prices().of_card("H200", "on-demand")
    assert len(data.pairs) == len(prices)
    for pair, price in zip(data.pairs, prices, strict=True):
        assert pair.other.usd == pytest.approx(10_000 * 4.08 / 3600 * price.usd_per_gpu_hour * 365 / 12)
        assert str(price.day) in pair.name
    by_use, fleet = data.lines
    assert by_use.points[0][1] > 0
    assert fleet.points[0][1] == 0


def test_billing_models_grow_with_volume() -> None:
    data = billing_models.plotted(report_of(gpu_result()))
    assert not isinstance(data, str)
    assert [name for name, _ in data.panels] == ["baseline", "classic"]
    assert [tariff.billing for tariff in data.tariffs] == ["by-use", "always-on", "reserved"]
    for _, lines in data.panels:
        assert len(lines) == 4
        for line in lines:
            values = [value for _, value in line.points]
            assert values == sorted(values)
    without_reserved = billing_models.plotted(report_of(gpu_result(device="NVIDIA H100 NVL")))
    assert not isinstance(without_reserved, str)
    assert [tariff.billing for tariff in without_reserved.tariffs] == ["by-use", "always-on"]


def test_cost_charts_are_large_and_named_after_card(tmp_path: Path) -> None:
    names = []
    for module in CHARTS:
        chart = written(module, gpu_result(device="NVIDIA H100 PCIe"), tmp_path)
        assert chart.path is not None
        names.append(chart.path.relative_to(tmp_path).as_posix())
        with Image.open(chart.path) as image:
            assert image.width >= 1600
        assert chart.takeaway
    assert names == ["cost/h100_summary.png", "cost/h100_cost_analysis.png", "cost/billing_models.png"]


@pytest.mark.parametrize("module", CHARTS)
def test_cost_charts_without_price_are_removed(tmp_path: Path, module: ModuleType) -> None:
    earlier = written(module, gpu_result(), tmp_path).path
    assert earlier is not None
    assert earlier.is_file()
    chart = written(module, CPU, tmp_path)
    assert chart.path is None
    assert "no price for this machine" in chart.takeaway
    assert not earlier.exists()


def test_workload_too_large_for_price_keeps_the_report(tmp_path: Path) -> None:
    too_large = gpu_result(device="NVIDIA GeForce RTX 4090", peak_gib=30.0)
    charts = write_charts(report_of(too_large), tmp_path)
    assert [chart.path for chart in charts if chart.path and chart.path.parent.name == "cost"] == []
    assert any("30.0 GiB" in chart.takeaway for chart in charts)


def test_report_discovers_cost_charts(tmp_path: Path) -> None:
    drawn = {chart.path.name for chart in write_charts(report_of(gpu_result()), tmp_path) if chart.path}
    assert {"h200_summary.png", "h200_cost_analysis.png", "billing_models.png"} <= drawn
