from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from kontext_fast.records.store import ResultStore
from kontext_fast.report.charting import write_charts
from kontext_fast.report.charts.benchmark import speedup_comparison
from tests.records.builder import full, record, result, timed
from tests.report import suite_records
from tests.report.reports import report_of, written


def test_plotted_speedups_equal_the_records(tmp_path: Path) -> None:
    """Computed here a second time, with scipy, from nothing but the records."""
    stored = full(ResultStore(tmp_path), rounds=4)
    (panel,) = speedup_comparison.plotted(report_of(stored))
    means: dict[str, dict[int, float]] = {}
    for run in stored.records:
        walls = [s.wall_s for m in run.measurements for s in m.samples if not s.warmup]
        if walls:
            means.setdefault(run.preset, {})[run.round] = float(np.mean(walls))
    assert [bar.preset for bar in panel.bars] == ["baseline", "fragile", "cache", "compile"]
    for bar in panel.bars[:3]:
        values = list(means[bar.preset].values())
        assert bar.time is not None
        assert bar.processes == pytest.approx(values)
        assert bar.time.value == pytest.approx(np.mean(values))
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert bar.time.interval == pytest.approx((expected.low, expected.high))
    for bar in panel.bars[1:3]:
        shared = means["baseline"].keys() & means[bar.preset].keys()
        logs = [math.log(means["baseline"][r] / means[bar.preset][r]) for r in shared]
        assert bar.factor is not None
        assert bar.factor.value == pytest.approx(math.exp(np.mean(logs)))
        assert bar.factor.n == len(shared)


def test_bar_of_two_processes_is_pale_without_whisker(tmp_path: Path) -> None:
    (panel,) = speedup_comparison.plotted(report_of(full(ResultStore(tmp_path))))
    bars = {bar.preset: bar for bar in panel.bars}
    two, three = bars["fragile"], bars["cache"]
    assert two.time is not None
    assert two.factor is not None
    assert (two.time.n, two.time.interval, two.factor.interval, two.claims) == (2, None, None, False)
    assert three.time is not None
    assert three.time.interval is not None
    assert three.claims


def test_speedup_chart_shows_failures_with_reason(tmp_path: Path) -> None:
    (panel,) = speedup_comparison.plotted(report_of(full(ResultStore(tmp_path))))
    failed = panel.bars[-1]
    assert failed.time is None
    assert failed.note == "refused: There is no C++ compiler: install g++."


def test_subtitle_has_machine_date_and_counts(tmp_path: Path) -> None:
    (panel,) = speedup_comparison.plotted(report_of(full(ResultStore(tmp_path))))
    assert panel.title == "edit, 128x128, 4 steps"
    assert panel.subtitle == "tiny on Imaginary CPU 9000, 2001-02-03, 8 processes, 16 measured calls"


def test_leading_workload_alone_is_drawn_and_others_are_counted() -> None:
    swept = suite_records.sweep()
    report = report_of(swept)
    (panel,) = speedup_comparison.plotted(report)
    assert panel.title == "edit, 1024x1024, 28 steps"
    assert "At 5 other workloads" in speedup_comparison.draw(report).takeaway
    assert sum(group.group.row("fast") is not None for group in report.groups[1:]) >= 5


def test_speedup_chart_leaves_out_parts_of_a_preset() -> None:
    (panel,) = speedup_comparison.plotted(report_of(suite_records.ablation()))
    assert [bar.preset for bar in panel.bars] == ["baseline", "baseline-again", "p"]


def test_speedup_picture_is_large(tmp_path: Path) -> None:
    chart = written(speedup_comparison, full(ResultStore(tmp_path)), tmp_path)
    assert chart.path == tmp_path / "performance" / "speedup_comparison.png"
    with Image.open(chart.path) as image:
        assert image.width >= 1600
        assert len(image.convert("RGB").getcolors(maxcolors=10**6) or []) > 50
    assert chart.takeaway.startswith(
        "cache takes 0.510 s where baseline takes 1.020 s: 2.00x (1.98x to 2.02x) as fast."
    )
    assert len(chart.alt) < 400


def test_speedup_picture_without_data_is_removed(tmp_path: Path) -> None:
    path = written(speedup_comparison, full(ResultStore(tmp_path)), tmp_path).path
    assert path is not None
    chart = written(
        speedup_comparison, result([record("baseline", 0, status="crash", reason="It fell over.")]), tmp_path
    )
    assert chart.path is None
    assert not path.exists()


def test_names_that_look_like_formulas_are_drawn_as_text() -> None:
    runs = [timed("baseline", 0, [1.0, 1.0]), timed("$\\frac{", 0, [1.0, 1.0])]
    runs.append(record("x", 0, status="crash", reason="$\\undefined{ $"))
    assert speedup_comparison.draw(report_of(result(runs))).picture.png()


def test_charts_are_discovered(tmp_path: Path) -> None:
    source = Path(speedup_comparison.__file__).parent
    modules = sorted(path.stem for path in source.glob("*.py") if path.stem != "__init__")
    assert len(write_charts(report_of(full(ResultStore(tmp_path))), tmp_path)) == len(modules)
    root = source.parents[2]
    named = [
        path.name
        for path in root.rglob("*.py")
        if source not in path.parents and re.search(r"\bspeedup_comparison\b", path.read_text())
    ]
    assert not named


def test_takeaway_of_many_workloads_has_finding_and_range() -> None:
    report = report_of(suite_records.sweep())
    takeaway = speedup_comparison.draw(report).takeaway
    assert takeaway.startswith("fast takes ")
    others = [row.factor.value for group in report.groups[1:] if (row := group.group.row("fast")) and row.factor]
    assert len(others) == 5
    assert f"At 5 other workloads it is {min(others):.2f}x to {max(others):.2f}x as fast." in takeaway
