"""What each chart plots, against the same numbers computed a second time from the records, with scipy."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from kontext_fast.analysis import format as fmt
from kontext_fast.records.schema import CONTROL, AppliedOptimization, Cell, Memory, ResultFile
from kontext_fast.report.charting import write_charts
from kontext_fast.report.charts.benchmark import (
    ablation,
    cold_start,
    memory_usage,
    resolution_scaling,
    stage_breakdown,
    step_resolution_heatmap,
)
from kontext_fast.report.plots import style
from kontext_fast.report.plots.bars import (
    Part,
    SpeedBar,
    SpeedPanel,
    StackedPanel,
    StackedRow,
    speed_picture,
    stacked_picture,
)
from kontext_fast.stats.intervals import Estimate
from tests.cost.gpu_records import gpu_result
from tests.records.builder import record, result, sample, timed
from tests.report import suite_records
from tests.report.reports import report_of, written
from tests.report.suite_records import SIZES, STEPS, walls

ORIGIN = re.compile(r"tiny on Imaginary CPU 9000, 2001-02-03, \d+ processes, \d+ measured calls")


CANVASES = (style.FILE, style.DESKTOP, style.CARD, style.PHONE)


def inside(figure: Any) -> set[str]:
    """The words in the axes of a figure, none of which is cut off at its edge."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    texts = [words for axes in figure.axes for words in axes.texts]
    frame = figure.get_window_extent()
    for words in texts:
        box = words.get_window_extent()
        assert frame.x0 <= box.x0, words.get_text()
        assert box.x1 <= frame.x1, words.get_text()
    return {words.get_text() for words in texts}


def assert_estimates(estimate: Estimate | None, values: Sequence[float]) -> None:
    assert estimate is not None
    assert estimate.n == len(values)
    assert estimate.value == pytest.approx(np.mean(values))
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert estimate.interval == pytest.approx(expected)


def test_heatmap_has_every_mean_and_a_cell_for_unreached_steps() -> None:
    stored = suite_records.sweep()
    (panel,) = step_resolution_heatmap.plotted(report_of(stored))
    assert ORIGIN.fullmatch(panel.subtitle)
    assert panel.steps == (*STEPS, 50)
    assert panel.sizes == SIZES
    assert [table.preset for table in panel.tables] == ["baseline", "fast"]
    for table in panel.tables:
        assert set(table.cells) == {(steps, size) for steps in STEPS for size in SIZES}
        for (steps, (width, height)), estimate in table.cells.items():
            expected = walls(stored, table.preset, steps=steps, width=width, height=height)
            assert_estimates(estimate, list(expected.values()))
    chart = step_resolution_heatmap.draw(report_of(stored))
    assert "3 cells not measured" in chart.takeaway


def test_heatmap_ignores_cells_planned_on_other_machines() -> None:
    stored = suite_records.sweep()
    elsewhere = {"environment": {"cpu": "Another CPU"}, "run_id": "elsewhere"}
    cold = {"compile_cache": "cold", "run_id": "cold"}
    others = [
        record("baseline", 7, order=90 + number, cells=(Cell(mode="edit", size="64x64", steps=4, batch=1),), **changes)
        for number, changes in enumerate((elsewhere, cold))
    ]
    panels = step_resolution_heatmap.plotted(
        report_of(stored.model_copy(update={"records": (*stored.records, *others)}))
    )
    assert panels == step_resolution_heatmap.plotted(report_of(stored))


def test_scaling_places_sizes_by_tokens_run() -> None:
    stored = suite_records.sweep()
    (panel,) = resolution_scaling.plotted(report_of(stored))
    assert "28 steps" in panel.title
    assert ORIGIN.fullmatch(panel.subtitle)
    assert [line.preset for line in panel.lines] == ["baseline", "fast"]
    for line in panel.lines:
        assert [(point.size, point.tokens) for point in line.points] == [
            (f"{width}x{height}", 512 + 2 * width * height // 256) for width, height in SIZES
        ]
        for point, (width, height) in zip(line.points, SIZES, strict=True):
            expected = walls(stored, line.preset, steps=28, width=width, height=height)
            assert_estimates(point.time, list(expected.values()))


def test_scaling_page_is_self_contained_and_complete(tmp_path: Path) -> None:
    stored = suite_records.sweep()
    written(resolution_scaling, stored, tmp_path)
    page = (tmp_path / "performance" / "resolution_scaling.html").read_text()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|src=|<link|@import|url\(", page)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    (panel,) = json.loads(data.group(1))
    (plotted,) = resolution_scaling.plotted(report_of(stored))
    assert [line["preset"] for line in panel["lines"]] == [line.preset for line in plotted.lines]
    for line, expected in zip(panel["lines"], plotted.lines, strict=True):
        for point, of in zip(line["points"], expected.points, strict=True):
            assert point["time"]["value"] == of.time.value
            assert tuple(point["time"]["interval"]) == of.time.interval
    assert page.count('<th scope="row">') == 6


def test_scaling_page_escapes_words_from_records() -> None:
    evil = "</script><script>alert(1)</script>"
    stored = suite_records.sweep()
    renamed = [run.model_copy(update={"preset": evil}) if run.preset == "fast" else run for run in stored.records]
    page = resolution_scaling.draw(report_of(stored.model_copy(update={"records": tuple(renamed)}))).html
    assert page is not None
    assert "<script>alert" not in page
    assert page.count("</script>") == 2


def test_scaling_names_of_close_lines_go_below_each_other() -> None:
    heights = [300.0, 60.0, 55.0, 52.0]
    downs = resolution_scaling.downs_of_names(heights, 13)
    assert downs[:2] == [0, 0]
    assert [height - down for height, down in zip(heights, downs, strict=True)] == [300, 60, 47, 34]


def test_scaling_lines_have_the_colors_of_every_chart() -> None:
    """Gray is baseline, blue is ours, orange is of others, in both schemes of the page and in its picture."""
    names = {"fast": "peer:steps-8", "baseline": "baseline", CONTROL: CONTROL}
    stored = suite_records.sweep()
    peers = [
        run.model_copy(update={"preset": names[run.preset], "run_id": f"{run.run_id} p"}) for run in stored.records
    ]
    report = report_of(stored.model_copy(update={"records": (*stored.records, *peers)}))
    (panel,) = resolution_scaling.plotted(report)
    wanted = {"baseline": style.GRAY, "fast": style.BLUE, "peer:steps-8": style.ORANGE}
    assert dict(zip((line.preset for line in panel.lines), resolution_scaling.colors_of(panel.lines), strict=True)) == (
        wanted
    )
    chart = resolution_scaling.draw(report)
    assert chart.html is not None
    (colors,) = json.loads(re.findall(r"const colorsOf = (.*);", chart.html)[0])
    assert dict(zip((line.preset for line in panel.lines), colors, strict=True)) == {
        name: style.VARIABLES[color] for name, color in wanted.items()
    }
    light, dark = re.findall(r":root \{ ?(.*?)\}", chart.html)
    for name in {*re.findall(r"var\(--([a-z-]+)\)", chart.html), *colors}:
        assert f"--{name}: " in light
        assert f"--{name}: " in dark


def test_memory_chart_shows_highest_call_of_all_processes() -> None:
    """One number per preset and kind, the same as in tables."""
    stored = suite_records.sweep()
    (panel,) = memory_usage.plotted(report_of(stored))
    assert "1024x1024" in panel.title
    assert ORIGIN.fullmatch(panel.subtitle)
    assert [row.preset for row in panel.rows] == ["baseline", "fast"]
    for row in panel.rows:
        for kind in suite_records.GIB:
            peaks = [
                getattr(s.memory, kind)
                for run in stored.records
                for m in run.measurements
                for s in m.samples
                if not s.warmup and run.preset == row.preset and (m.workload.steps, m.workload.width) == (28, 1024)
            ]
            assert getattr(row.memory, kind) == max(peaks)


@pytest.mark.parametrize("canvas", CANVASES, ids=lambda canvas: f"{canvas.width_in}in")
def test_memory_labels_are_inside_the_picture(canvas: style.Canvas) -> None:
    (panel,) = memory_usage.plotted(report_of(suite_records.sweep()))
    memory = Memory(allocated_peak_bytes=2**30, device_process_peak_bytes=int(139.5 * 2**30))
    rows = tuple(replace(row, memory=memory) for row in panel.rows)
    picture = memory_usage._picture("headline", [replace(panel, rows=rows)])
    assert fmt.peak_memory(memory) in inside(picture.draw(canvas))


def test_uncounted_memory_is_not_drawn() -> None:
    (panel,) = memory_usage.plotted(report_of(result([timed("baseline", 0, [1.0, 1.0])])))
    assert [row.memory.allocated_peak_bytes for row in panel.rows] == [None]
    nothing = [record("baseline", 0, [sample(item, 1.0, memory=Memory()) for item in "ab"])]
    assert memory_usage.draw(report_of(result(nothing))).takeaway == "Not drawn: no call had its memory counted."


def test_stages_chart_adds_up_to_the_call() -> None:
    stored = suite_records.sweep()
    (panel,) = stage_breakdown.plotted(report_of(stored))
    assert ORIGIN.fullmatch(panel.subtitle)
    for row in panel.rows:
        expected = list(walls(stored, row.name, steps=28, width=1024).values())
        assert_estimates(row.whole, expected)
        assert sum(part.seconds for part in row.parts) == pytest.approx(np.mean(expected))
        by_name = {part.name: part.seconds for part in row.parts}
        assert by_name["denoise"] == pytest.approx(0.8 * np.mean(expected))
        assert by_name["rest"] == pytest.approx(0.05 * np.mean(expected))
    assert "denoise takes 80 % of a call of baseline" in stage_breakdown.draw(report_of(stored)).takeaway


def test_stages_and_memory_charts_rank_slow_to_fast() -> None:
    walls_of = {"baseline": 2.0, "quick": 0.5, "slow": 1.0}
    stored = result([timed(name, 0, [wall, wall], order=i) for i, (name, wall) in enumerate(walls_of.items())])
    (stages,) = stage_breakdown.plotted(report_of(stored))
    (memory,) = memory_usage.plotted(report_of(stored))
    assert [row.name for row in stages.rows] == ["baseline", "slow", "quick"]
    assert [row.preset for row in memory.rows] == ["baseline", "slow", "quick"]


def test_stages_chart_shows_failed_preset_with_reason() -> None:
    stored = result([timed("baseline", 0, [1.0, 1.0]), record("x", 0, status="refused", reason="No compiler.")])
    (panel,) = stage_breakdown.plotted(report_of(stored))
    assert (panel.rows[1].whole, panel.rows[1].note) == (None, "refused: No compiler.")


def test_start_is_load_apply_and_first_call() -> None:
    stored = suite_records.cold()
    (panel,) = cold_start.plotted(report_of(stored))
    assert ORIGIN.fullmatch(panel.subtitle)
    assert [row.name for row in panel.rows] == [
        "baseline, cold cache",
        "baseline, warm cache",
        "compile, cold cache",
        "compile, warm cache",
    ]
    for row in panel.rows:
        preset, cache = re.fullmatch(r"(\w+), (\w+) cache", row.name).groups()  # type: ignore[union-attr]
        runs = [run for run in stored.records if (run.preset, run.compile_cache) == (preset, cache)]
        starts = [(run.load_s or 0, run.apply_s or 0, run.measurements[0].first_call_s or 0) for run in runs]
        assert [part.seconds for part in row.parts] == pytest.approx(np.mean(starts, axis=0))
        assert_estimates(row.whole, [sum(start) for start in starts])
        unseen = np.mean([run.measurements[1].samples[0].wall_s for run in runs])
        assert row.note is not None
        assert float(re.findall(r"[\d.]+", row.note)[0]) == pytest.approx(unseen, rel=0.01)
        assert row.note.endswith("then 1.00 s")


def test_loading_of_random_weights_is_no_part_of_a_start() -> None:
    """They are drawn on the GPU: nothing is read from disk, as real weights are."""
    report = report_of(gpu_result())
    (panel,) = cold_start.plotted(report)
    assert {part.name for row in panel.rows for part in row.parts} == {"apply", "first call"}
    assert [row.whole and row.whole.value for row in panel.rows] == [13.0, 207.0, 205.0]
    chart = cold_start.draw(report)
    assert "Random weights are drawn on the GPU and not read from disk" in chart.how_to_read
    assert "not read from disk" not in cold_start.draw(report_of(suite_records.cold())).how_to_read


def test_starts_on_the_leading_machine_come_first(tmp_path: Path) -> None:
    """That is the machine of most presets, wherever its records stand; the rows of a machine are slow to fast."""
    few = [run for run in gpu_result(rounds=1).records if run.preset != "compile"]
    many = [
        run.model_copy(update={"run_id": f"{run.run_id} again", "order": 100 + number})
        for number, run in enumerate(reversed(gpu_result(device="NVIDIA H100").records))
    ]
    report = report_of(result([*few, *many]))
    panels = [panel for part in report.by_machine() for panel in cold_start.plotted(part)]
    assert ["H100" in panel.subtitle for panel in panels] == [True, False]
    assert [[row.preset for row in panel.rows] for panel in panels] == [
        ["baseline", "compile", "classic"], ["baseline", "classic"],
    ]  # fmt: skip
    sources = {chart.path: chart.source for chart in write_charts(report, tmp_path) if chart.title == cold_start.TITLE}
    assert "H100" in sources[tmp_path / "performance" / "cold_start.png"]
    assert len(sources) == 2


def test_user_cache_runs_are_not_mixed_with_cold_and_warm() -> None:
    stored = suite_records.cold()
    own = record("compile", 7, run_id="own", order=99).model_copy(
        update={"measurements": stored.records[0].measurements}
    )
    (panel,) = cold_start.plotted(report_of(stored.model_copy(update={"records": (*stored.records, own)})))
    assert not any("as it was" in row.name for row in panel.rows)


def test_user_cache_is_not_named_in_rows() -> None:
    stored = suite_records.cold()
    as_it_was = [one.model_copy(update={"compile_cache": "user"}) for one in stored.records]
    (panel,) = cold_start.plotted(report_of(stored.model_copy(update={"records": tuple(as_it_was)})))
    assert [row.name for row in panel.rows] == ["baseline", "compile"]


@pytest.mark.parametrize("canvas", CANVASES, ids=lambda canvas: f"{canvas.width_in}in")
def test_long_names_and_words_are_inside_the_picture(canvas: style.Canvas) -> None:
    """Names beside the rows, and words after an interval that is as wide as all else."""
    names = ("p", "first_block_cache, cold cache", "peer:compiled-float8-and-more, warm")
    wide = [
        StackedRow(name, (Part("p", 9.0),), Estimate(9.0, (0.0, 18.0), 5), "new size 2 s, then 1 s") for name in names
    ]
    picture = stacked_picture("headline", [StackedPanel("title", "subtitle", tuple(wide))], {"p": "#123456"})
    assert inside(picture.draw(canvas)) >= set(names)


@pytest.mark.parametrize("canvas", CANVASES, ids=lambda canvas: f"{canvas.width_in}in")
def test_factors_with_wide_intervals_are_inside_the_picture(canvas: style.Canvas) -> None:
    times = Estimate(2.02, (1.6, 2.4), 3), Estimate(0.686, (0.6, 0.77), 3)
    factor = Estimate(2.94, (2.19, 3.93), 3)
    bars = (
        SpeedBar("baseline", times[0], (2.0,), None, "reference"),
        SpeedBar("step_reuse(computed=4)", times[1], (0.7,), factor, None),
    )
    texts = inside(speed_picture("headline", [SpeedPanel("title", "subtitle", bars, "")]).draw(canvas))
    assert any("2.94x" in words for words in texts)


@pytest.mark.parametrize("canvas", CANVASES, ids=lambda canvas: f"{canvas.width_in}in")
def test_words_of_a_part_fit_into_it(canvas: style.Canvas) -> None:
    parts = (Part("p", 0.41), Part("p", 9.0))
    panel = StackedPanel("title", "subtitle", (StackedRow("fast", parts, Estimate(9.41, None, 1)),))
    drawn = inside(stacked_picture("headline", [panel], {"p": "#123456"}).draw(canvas))
    assert "9.00 s" in drawn
    assert "0.410 s" not in drawn


def test_ablation_compares_alone_and_added_last() -> None:
    stored = suite_records.ablation()
    (panel,) = ablation.plotted(report_of(stored))
    assert ORIGIN.fullmatch(panel.subtitle)
    expected = {
        ("p", "all together"): ("baseline", "p"),
        ("helps", "alone"): ("baseline", "p-only-helps"),
        ("helps", "added last"): ("p-without-helps", "p"),
        ("idle", "alone"): ("baseline", "p-only-idle"),
        ("idle", "added last"): ("p-without-idle", "p"),
    }
    points = {(point.optimization, point.how): point for point in panel.points}
    assert set(points) == {*expected, ("picky", "alone")}
    for key, (slower, faster) in expected.items():
        factor = points[key].factor
        assert factor is not None
        slow, fast = walls(stored, slower), walls(stored, faster)
        logs = [math.log(slow[r] / fast[r]) for r in slow]
        interval = stats.t.interval(0.95, len(logs) - 1, np.mean(logs), stats.sem(logs))
        assert factor.value == pytest.approx(math.exp(np.mean(logs)))
        assert factor.interval == pytest.approx(np.exp(interval))
    assert points["helps", "alone"].claim == points["helps", "added last"].claim == "faster"
    assert points["idle", "alone"].claim == "no difference found"
    assert points["picky", "alone"].note == "p-only-picky refused: No compiler."
    takeaway = ablation.draw(report_of(stored)).takeaway
    assert "helps gains most" in takeaway
    assert "no effect was found of idle alone" in takeaway


def test_ablation_keeps_the_order_of_the_plan() -> None:
    plan = tuple(AppliedOptimization(name=name, effect="numeric") for name in ("idle", "helps"))
    made = [
        one.model_copy(update={"plan": plan}) if one.preset == "p" else one for one in suite_records.ablation().records
    ]
    for seed in range(5):
        shuffled = random.Random(seed).sample(made, len(made))
        (panel,) = ablation.plotted(
            report_of(result([one.model_copy(update={"order": i}) for i, one in enumerate(shuffled)]))
        )
        assert [(point.optimization, point.how) for point in panel.points] == [
            ("p", "all together"), ("idle", "alone"), ("idle", "added last"),
            ("helps", "alone"), ("helps", "added last"), ("picky", "alone"),
        ]  # fmt: skip


ALL = {
    ablation: suite_records.ablation,
    cold_start: suite_records.cold,
    memory_usage: suite_records.sweep,
    resolution_scaling: suite_records.sweep,
    stage_breakdown: suite_records.sweep,
    step_resolution_heatmap: suite_records.sweep,
}


@pytest.mark.parametrize("chart", ALL, ids=lambda chart: chart.__name__.rpartition(".")[2])
def test_pictures_are_large_and_removed_without_data(chart: ModuleType, tmp_path: Path) -> None:
    drawn = written(chart, ALL[chart](), tmp_path)
    name = chart.__name__.rpartition(".")[2]
    assert drawn.path == tmp_path / "performance" / f"{name}.png"
    with Image.open(drawn.path) as image:
        assert image.width >= 1600
        assert len(image.convert("RGB").getcolors(maxcolors=10**6) or []) > 50
    assert drawn.takeaway in drawn.alt
    assert drawn.how_to_read
    empty: ResultFile = result([record("baseline", 0, status="crash", reason="It fell over.")])
    gone = written(chart, empty, tmp_path)
    assert gone.path is None
    assert gone.takeaway.startswith("Not drawn: ")
    assert not list((tmp_path / "performance").iterdir())


@pytest.mark.parametrize("chart", ALL, ids=lambda chart: chart.__name__.rpartition(".")[2])
def test_names_that_look_like_formulas_are_drawn_as_text(chart: ModuleType) -> None:
    stored = ALL[chart]()
    formula = "$\\frac{"
    renamed = [run.model_copy(update={"preset": run.preset.replace("fast", formula).replace("p-", f"{formula}-")})
               for run in stored.records]  # fmt: skip
    renamed = [run.model_copy(update={"preset": formula}) if run.preset == "p" else run for run in renamed]
    assert chart.draw(report_of(stored.model_copy(update={"records": tuple(renamed)}))).picture.png()
