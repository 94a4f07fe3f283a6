"""Quality against time: presets are compared with the number of plain steps that takes the same time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kontext_fast.records.schema import EMULATED, ArmRole, Record, ResultFile
from kontext_fast.records.store import ResultStore
from kontext_fast.report.charting import write_verification_charts
from kontext_fast.report.charts.verification import frontier as frontier_chart
from kontext_fast.report.output.quality_page import write_quality_page
from kontext_fast.report.text import quality as words
from kontext_fast.report.verification import build_verification_report
from kontext_fast.verify.analysis import PresetAnalysis, VerificationAnalysis, analyze
from kontext_fast.verify.frontier import Change, Frontier, FrontierPoint, frontier, quality_of_fewer_steps
from kontext_fast.verify.verdict import Level, QualityVerdict
from tests.verify.stored_arms import Key, stored_arm, verification_of
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
    # Up to the fewest and the most steps, and no farther.
    assert [quality_of_fewer_steps(points, METRIC, edit_s) for edit_s in (0.6, 0.7, 2.8, 2.9)] == [None, -0.3, 0, None]


def test_steps_that_were_not_timed_or_scored_are_not_interpolated_between() -> None:
    untimed = _point("20 steps", "steps", None, -0.9)
    unscored = replace(_point("10 steps", "steps", 1.0), changes={})
    points = replace(_with(), points=(*LINE, untimed, unscored))
    assert quality_of_fewer_steps(points, METRIC, 1.05) == pytest.approx(-0.20)


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


OUTPUT_SCORES: dict[str, dict[Key, float]] = {
    "baseline": {("a", 0): 1, ("b", 0): 1},
    "worse": {("a", 0): 0, ("b", 0): 0},
    "single": {("a", 0): 1},
}
"""Scores of outputs."""


def _arm(name: str, role: ArmRole, *edits_s: float, scores: str = "baseline", **changes: Any) -> Record:
    """With the same scores in every metric of images but `judge_done`."""
    by_metric = dict.fromkeys((METRIC, "clip_text", "dino"), OUTPUT_SCORES[scores])
    return stored_arm(name, role, {}, scores=by_metric, edits_s=edits_s, **changes)


ARMS = (
    _arm("baseline", "baseline", 2.7, 2.9, 2.8),
    _arm("fast", "preset", 1.0, 1.3, scores="worse"),
    _arm("emulated", "preset", labels=(EMULATED,)),
    _arm("refused", "preset", reason="It needs a GPU.", scores="single"),
    _arm("unclocked", "preset"),
    _arm("14 steps", "steps", 1.4),
    _arm("re-run", "floor", 3.0),
)


def _analysis(*fewer_steps: PresetAnalysis) -> VerificationAnalysis:
    """Of the quality metrics `dino` is not primary, `clip_text` is insensitive and `judge_done` was not measured."""
    primary = {METRIC: 0.05, "judge_done": 0.05, "clip_text": 0.5}
    analysis = analyze(verification_of())
    return replace(
        analysis,
        margins=analysis.margins.model_copy(update={"primary": primary}),
        insensitive={"clip_text": "it missed blur"},
        presets=(PresetAnalysis("fast", QualityVerdict(Level.LOSS, "Half as sharp."), None),),
        fewer_steps=fewer_steps,
    )


def test_point_has_its_times_and_its_changes_or_says_why_not() -> None:
    points = frontier(verification_of(*ARMS), _analysis())
    assert points is not None
    assert (points.metrics, points.again_s) == ((METRIC,), 3.0)
    assert [(point.name, point.kind, point.no_time) for point in points.points] == [
        ("baseline", "baseline", None),
        ("fast", "preset", None),
        ("emulated", "preset", "emulated kernels: not a speed"),
        ("refused", "preset", "It needs a GPU."),
        ("unclocked", "preset", "not measured"),
        ("14 steps", "steps", None),
    ]
    _, fast, _, single, *_ = points.points
    assert (fast.level, fast.edit_s, fast.fastest_s, fast.slowest_s) == (Level.LOSS, 1.15, 1.0, 1.3)
    # Two items that agree leave doubt about answers of yes and no; one item shows nothing.
    assert fast.changes[METRIC].mean == -1
    assert fast.changes[METRIC].lower < fast.changes[METRIC].upper
    assert single.changes == {}


def test_frontier_is_of_verifications_that_timed_edits_or_ran_fewer_steps() -> None:
    untimed = stored_arm("baseline", "baseline", {})
    fewer = PresetAnalysis("14 steps", QualityVerdict(Level.LOSS, "Half as sharp."), None)
    assert frontier(verification_of(ARMS[1]), _analysis(fewer)) is None, "without baseline"
    assert frontier(verification_of(untimed), _analysis()) is None
    assert frontier(verification_of(untimed), _analysis(fewer)) is not None
    assert frontier(verification_of(ARMS[0]), _analysis()) is not None


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
