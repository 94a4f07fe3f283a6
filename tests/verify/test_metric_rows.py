"""A verdict as rows, and how many items it asks for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from kontext_fast.report.output.terminal import print_verdicts, verdicts_as_data
from kontext_fast.stats.bounds import Ratio
from kontext_fast.verify.analysis import PresetAnalysis, VerificationAnalysis
from kontext_fast.verify.comparisons import FloorComparison, MarginComparison, Outcome, SeedNoiseComparison
from kontext_fast.verify.margins import read_margins
from kontext_fast.verify.metric_rows import items_to_decide, metric_rows
from kontext_fast.verify.verdict import Level, QualityVerdict
from tests.records.builder import stored_verification

MARGINS = read_margins()
LOSS = MarginComparison(
    metric="judge_done", outcome=Outcome.PASSED, mean=-0.01, lower=-0.04, upper=0.02, margin=0.05, n=100, needed=70
)
NOISE = SeedNoiseComparison(metric="ssim", outcome=Outcome.PASSED, median=0.1, median_upper=0.2, p90=0.5, p90_upper=0.9)
FLOOR = FloorComparison(
    metric="psnr",
    outcome=Outcome.PASSED,
    ratio=Ratio(1.0, 0.9, 1.1),
    median_ratio=Ratio(1.1, 0.9, 1.3),
    worst=1.2,
    arm="re-run",
    n=100,
)


def quality(level: Level, *losses: MarginComparison, noise: SeedNoiseComparison = NOISE) -> QualityVerdict:
    return QualityVerdict(level, "Because.", (FLOOR,), (noise,), losses)


def test_quality_has_a_row_per_metric_with_bound_and_margin() -> None:
    rows = metric_rows(quality(Level.NON_INFERIOR, LOSS), MARGINS)
    assert [row.cells() for row in rows] == [
        ("judge_done", "-0.01", "-0.04", "-0.05", "100", "pass"),
        ("ssim / seed noise, median", "0.10", "0.20", "0.50", "100", "pass"),
        ("ssim / seed noise, p90", "0.50", "0.90", "1.00", "100", "pass"),
    ]
    assert items_to_decide(quality(Level.NON_INFERIOR, LOSS), rows) is None
    (small, *_) = metric_rows(quality(Level.NON_INFERIOR, replace(LOSS, mean=1.23e-5)), MARGINS)
    assert small.cells()[1:4] == ("+1.23e-05", "-0.04", "-0.05")


def test_without_quality_the_rows_are_ratios_to_rounding() -> None:
    (row,) = metric_rows(QualityVerdict(Level.EQUIVALENT, "Close.", (FLOOR,)), MARGINS)
    # The ratio with the higher bound decides.
    assert row.cells() == ("psnr / rounding", "1.10", "1.30", f"{MARGINS.floor.ratio:.2f}", "100", "pass")
    # The median of few items has no bound.
    unbounded = replace(FLOOR, median_ratio=Ratio(1.1, 0, float("inf")))
    (row,) = metric_rows(QualityVerdict(Level.EQUIVALENT, "Close.", (unbounded,)), MARGINS)
    assert row.cells()[2] == "inf"
    assert metric_rows(QualityVerdict(Level.IDENTICAL, "Same."), MARGINS) == ()


@pytest.mark.parametrize(("n", "needed"), [(5, 8), (8, 16), (20, 40)])
def test_few_items_of_rounding_need_the_least_number_first(n: int, needed: int) -> None:
    floor = replace(FLOOR, outcome=Outcome.UNDECIDED, n=n)
    (row,) = metric_rows(QualityVerdict(Level.CANNOT_TELL, "Few.", (floor,)), MARGINS)
    assert (row.needed, row.answer) == (needed, "too few")


def test_one_limit_of_seed_noise_fails_by_itself() -> None:
    noise = replace(NOISE, outcome=Outcome.FAILED, p90=1.5, p90_upper=1.8)
    rows = metric_rows(quality(Level.LOSS, LOSS, noise=noise), MARGINS)
    assert [row.answer for row in rows] == ["pass", "pass", "fail"]


@pytest.mark.parametrize(
    ("n", "needed", "answer", "items"),
    [(20, 63, "too few", 70), (20, 60, "too few", 60), (100, 70, "cannot tell", None)],
)
def test_items_to_ask_for_next(n: int, needed: int, answer: str, items: int | None) -> None:
    verdict = quality(Level.CANNOT_TELL, replace(LOSS, outcome=Outcome.UNDECIDED, n=n, needed=needed))
    rows = metric_rows(verdict, MARGINS)
    assert rows[0].answer == answer
    assert items_to_decide(verdict, rows) == items


def test_too_few_items_for_seed_noise_ask_for_twice_as_many() -> None:
    noise = replace(NOISE, outcome=Outcome.UNDECIDED, p90_upper=1.4)
    verdict = quality(Level.CANNOT_TELL, replace(LOSS, n=33), noise=noise)
    rows = metric_rows(verdict, MARGINS)
    assert [row.answer for row in rows] == ["pass", "pass", "too few"]
    assert items_to_decide(verdict, rows) == 70


def test_terminal_shows_the_rows_in_80_columns() -> None:
    verdict = quality(Level.CANNOT_TELL, replace(LOSS, outcome=Outcome.UNDECIDED, n=20, needed=63))
    analysis = _analysis(PresetAnalysis("turbo", verdict, None), PresetAnalysis("compile", replace(verdict), None))
    console = Console(width=80, highlight=False)
    with console.capture() as captured:
        print_verdicts(analysis, None, console)
    lines = captured.get().splitlines()
    assert lines[0] == "turbo: cannot tell. Because."
    assert lines[1].split() == ["metric", "change", "bound", "margin", "items", "outcome"]
    assert lines[2].split() == ["judge_done", "-0.01", "-0.04", "-0.05", "20", "too", "few"]
    assert "Too few items to decide: run again with --items 70." in lines
    assert max(map(len, lines)) <= 80
    (data, _) = verdicts_as_data(analysis, None)["presets"]
    assert data["metrics"][0]["metric"] == "judge_done"
    assert data["metrics"][0]["answer"] == "too few"
    assert data["metrics"][0]["needed"] == 63


def _analysis(*presets: PresetAnalysis) -> VerificationAnalysis:
    return VerificationAnalysis(
        verification=stored_verification(),
        margins=MARGINS,
        presets=presets,
        fewer_steps=(),
        control_checks=(),
        insensitive={},
        metrics=(),
    )
