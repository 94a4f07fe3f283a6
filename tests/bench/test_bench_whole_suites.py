"""The suites as they ship, scaled down for the bundled checkpoint: the tables and charts of a real card."""

from __future__ import annotations

from pathlib import Path

import pytest

from kontext_fast.cli.main import run
from kontext_fast.records.schema import CONTROL, ResultFile
from kontext_fast.records.store import ResultStore
from kontext_fast.report.charting import write_charts
from kontext_fast.report.charts.benchmark import ablation, cold_start, resolution_scaling, step_resolution_heatmap
from kontext_fast.report.model import build_report

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def bench(out: Path, *options: str, monkeypatch: pytest.MonkeyPatch) -> ResultFile:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = ["bench", "--checkpoint", "tiny", "--device", "cpu", "--rounds", "1", "--out", str(out), *options]
    assert run(command) == 0
    result = ResultStore(out).load()
    write_charts(build_report(result), out / "visualizations")
    return result


def test_full_suite_fills_grid_and_scaling_charts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = bench(tmp_path, "--suite", "full", "--presets", "baseline,fuse_qkv", monkeypatch=monkeypatch)
    (grid,) = step_resolution_heatmap.plotted(build_report(result))
    assert (len(grid.steps), len(grid.sizes)) == (4, 5)
    assert [(table.preset, len(table.cells)) for table in grid.tables] == [("baseline", 20), ("fuse_qkv", 20)]
    (scaling,) = resolution_scaling.plotted(build_report(result))
    for line in scaling.lines:
        assert len(line.points) == 5
        times = [point.time.value for point in line.points]
        assert times[0] < times[-1]
    workloads = {(m.workload.mode, m.workload.batch) for record in result.records for m in record.measurements}
    assert workloads == {("edit", 1), ("edit", 2), ("edit", 4), ("text-to-image", 1)}
    assert sum(record.preset == CONTROL for record in result.records) == 1


def test_ablation_suite_fills_its_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = bench(tmp_path, "--suite", "ablation", "--steps", "4", "--items", "1", monkeypatch=monkeypatch)
    (panel,) = ablation.plotted(build_report(result))
    assert len(panel.points) == 9
    assert all(point.factor is not None for point in panel.points)


def test_cold_cache_compiles_slower_than_a_warm_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = bench(tmp_path, "--suite", "cold", "--presets", "baseline,compile", monkeypatch=monkeypatch)
    (panel,) = cold_start.plotted(build_report(result))
    first = {row.name: row.parts[-1].seconds for row in panel.rows}
    assert first["compile, cold cache"] > 2 * first["compile, warm cache"]
    assert first["compile, warm cache"] > 0
    compiled = {
        record.compile_cache: sum(s.graphs_compiled or 0 for m in record.measurements for s in m.samples)
        for record in result.records
        if record.preset == "compile"
    }
    assert compiled["cold"] > 0
