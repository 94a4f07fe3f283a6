"""Quality against time: presets are compared with the number of plain steps that takes the same time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from kontext_fast.records.schema import EMULATED, ResultFile
from kontext_fast.records.store import ResultStore
from kontext_fast.report.charting import write_verification_charts
from kontext_fast.report.charts.verification import frontier as frontier_chart
from kontext_fast.report.output.quality_page import write_quality_page
from kontext_fast.report.text import quality as words
from kontext_fast.report.verification import build_verification_report
from kontext_fast.verify.analysis import analyze
from kontext_fast.verify.frontier import Change, Frontier, FrontierPoint, frontier, quality_of_fewer_steps
from kontext_fast.verify.verdict import Level
from tests.verify.synthetic_results import losing, untouched, verification

METRIC = "judge_kept"


def _point(name: str, kind: str, edit_s: float | None, mean: float = 0.0, reach: float = 0.02) -> FrontierPoint:
    changes = {METRIC: Change(mean, mean - reach, mean + reach)}
    return FrontierPoint(name, kind, Level.LOSS, edit_s, edit_s, edit_s, None if edit_s else "no clock", changes)  # type: ignore[arg-type]


LINE = (
    _point("baseline", "baseline", 2.8, reach=0),
    _point("14 steps", "steps", 1.4, -0.10),
    _point("7 steps", "steps", 0.7, -0.30),
)


def _with(*presets: FrontierPoint) -> Frontier:
    return Frontier((LINE[0], *presets, *LINE[1:]), (METRIC,), 2.9)


def test_quality_is_interpolated_between_step_counts() -> None:
    points = _with()
    assert quality_of_fewer_steps(points, METRIC, 1.4) == pytest.approx(-0.10)
    assert quality_of_fewer_steps(points, METRIC, 1.05) == pytest.approx(-0.20)
    assert quality_of_fewer_steps(points, METRIC, 2.1) == pytest.approx(-0.05)
    assert quality_of_fewer_steps(points, METRIC, 0.6) is None


@pytest.mark.parametrize(
    ("edit_s", "mean", "said"),
    [
        (1.05, -0.05, words.AHEAD),
        (1.05, -0.40, words.BEHIND),
        (1.05, -0.21, words.ALIKE),
        (2.8, 0.0, words.SLOWER),
        (0.5, -0.05, words.BEYOND),
        (None, -0.05, None),
    ],
)
def test_preset_is_compared_with_the_steps_of_its_time(edit_s: float | None, mean: float, said: str | None) -> None:
    preset = _point("fast", "preset", edit_s, mean)
    assert words.standing(_with(preset), preset) == said


def test_metrics_that_disagree_are_mixed() -> None:
    def both(point: FrontierPoint, mean: float) -> FrontierPoint:
        return replace(point, changes={**point.changes, "judge_done": Change(mean, mean - 0.02, mean + 0.02)})

    preset = both(_point("fast", "preset", 1.4, -0.01), -0.5)
    points = Frontier(
        (both(LINE[0], 0), preset, both(LINE[1], -0.1), both(LINE[2], -0.3)), (METRIC, "judge_done"), None
    )
    assert words.standing(points, preset) == words.MIXED


def test_finding_names_every_preset_once() -> None:
    said = words.frontier_finding(
        _with(_point("a", "preset", 1.4, 0.0), _point("b", "preset", 1.4, -0.5), _point("c", "preset", None))
    )
    assert said == f"a: {words.AHEAD}. b: {words.BEHIND}. Not timed: c (no clock)."
    repeatable = words.repeatable(_with())
    assert repeatable is not None
    assert "+3.6 %" in repeatable


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> ResultStore:
    times = {
        "baseline": (2.7, 2.8, 2.9),
        "re-run": (2.8,),
        "good": (1.0, 1.1),
        "14 steps": (1.4, 1.5),
        "7 steps": (0.7,),
    }
    return verification(
        tmp_path_factory.mktemp("frontier"),
        {"good": untouched, "untimed": untouched},
        items=8,
        control_items=8,
        fewer={"14 steps": losing(4), "7 steps": losing(2)},
        edits_s=times,
    )


def _emulated(result: ResultFile) -> ResultFile:
    records = [
        record.model_copy(update={"labels": (EMULATED,)}) if record.preset == "untimed" else record
        for record in result.records
    ]
    return result.model_copy(update={"records": tuple(records)})


def test_points_come_from_records(store: ResultStore) -> None:
    result = _emulated(store.load())
    points = frontier(result, analyze(result))
    assert points is not None
    by_name = {point.name: point for point in points.points}
    assert list(by_name) == ["baseline", "good", "untimed", "14 steps", "7 steps"]
    assert (by_name["good"].edit_s, by_name["good"].fastest_s, by_name["good"].slowest_s) == (1.05, 1.0, 1.1)
    assert by_name["good"].level is Level.IDENTICAL
    assert by_name["untimed"].no_time == "emulated kernels: not a speed"
    assert points.again_s == 2.8
    assert METRIC in points.metrics
    assert by_name["7 steps"].changes[METRIC].mean < by_name["14 steps"].changes[METRIC].mean < 0
    assert words.standing(points, by_name["good"]) == words.AHEAD
    # Fewer steps are shown, but are no presets, so that they cannot fail the command.
    assert [preset.preset for preset in analyze(result).presets] == ["good", "untimed"]


def test_chart_and_page_show_the_frontier(store: ResultStore, tmp_path: Path) -> None:
    (chart,) = (
        chart
        for chart in write_verification_charts(build_verification_report(store.load()), tmp_path)
        if chart.section == frontier_chart.SECTION
    )
    assert chart.path is not None
    with Image.open(chart.path) as picture:
        assert picture.width == 1800
    assert "good: ahead of fewer steps" in chart.takeaway
    page = write_quality_page(store.folder).read_text()
    assert "Quality against time" in page
    assert "ahead of fewer steps" in page


def test_verification_without_frontier_has_no_chart(store: ResultStore) -> None:
    result = store.load()
    kept = tuple(
        record.model_copy(update={"edits_s": ()})
        for record in result.records
        if record.arm and record.arm.role != "steps"
    )
    chart = frontier_chart.draw(build_verification_report(result.model_copy(update={"records": kept})))
    assert chart.picture is None
    assert "--frontier" in chart.takeaway
