"""Two benchmarks compared: what is refused, what is a regression, and what is only a slower day."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from kontext_fast.analysis.comparison import Change, Comparison, compare
from kontext_fast.cli.main import run
from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import CONTROL, ResultFile
from kontext_fast.records.store import ResultStore
from tests.records.builder import MACHINE, RANDOM, TINY, record, result, timed, workload

OTHER_CARD = {"gpu": {"name": "Imaginary GPU"}}


def bench(
    seed: int, *, rounds: int = 8, day: float = 1.0, cache: float = 0.5, noise: float = 0.005, **changes: Any
) -> ResultFile:
    """Baseline, its control and one preset; `day` slows the whole machine, and rounds share a drift."""
    rng = np.random.default_rng(seed)
    records = []
    for round_ in range(rounds):
        shared = day * float(np.exp(rng.normal(0, 0.05)))
        for preset, wall in (("baseline", 1.0), (CONTROL, 1.0), ("cache", cache)):
            walls = [shared * wall * float(np.exp(rng.normal(0, noise))) for _ in range(4)]
            records.append(timed(preset, round_, walls, run_id=f"{preset}-{round_}", **changes))
    return result(records)


def of(comparison: Comparison, preset: str) -> Change:
    (change,) = [change for change in comparison.changes if change.preset == preset]
    return change


def test_three_percent_slowdown_is_a_regression_of_that_preset() -> None:
    comparison = compare(bench(1), bench(2, cache=0.515), 0.02)
    assert [change.preset for change in comparison.regressions] == ["cache"]
    change = of(comparison, "cache")
    assert change.ratio is not None
    assert change.ratio.interval is not None
    assert change.ratio.interval[0] < 1.03 < change.ratio.interval[1]
    assert change.relative
    assert change.detectable is not None
    assert 0.001 < change.detectable < 0.02


def test_change_of_a_preset_is_relative_to_baseline() -> None:
    """Computed a second time from the records, with scipy."""
    before, after = bench(3), bench(4, cache=0.55)

    def logs(of_result: ResultFile) -> list[float]:
        means: dict[tuple[str, int], float] = {}
        for one in of_result.records:
            walls = [s.wall_s for m in one.measurements for s in m.samples if not s.warmup]
            means[one.preset, one.round] = float(np.mean(walls))
        return [np.log(means["cache", r] / means["baseline", r]) for r in range(8)]

    expected = stats.ttest_ind(logs(after), logs(before), equal_var=False).confidence_interval(0.95)
    ratio = of(compare(before, after, 0.02), "cache").ratio
    assert ratio is not None
    assert ratio.interval == pytest.approx((np.exp(expected.low), np.exp(expected.high)))


def test_slower_day_is_a_regression_of_baseline_only() -> None:
    comparison = compare(bench(5), bench(6, day=1.3), 0.02)
    assert [change.preset for change in comparison.regressions] == ["baseline"]
    assert not of(comparison, "baseline").relative
    assert of(comparison, "cache").outcome == "no change found"


def test_same_benchmark_twice_shows_no_change() -> None:
    comparison = compare(bench(7), bench(7), 0.02)
    assert [change.preset for change in comparison.changes] == ["baseline", "cache"]
    # Baseline has no baseline: its times carry the drift of the rounds, which the preset's do not.
    assert [change.outcome for change in comparison.changes] == ["cannot tell", "no change found"]


def test_small_change_is_reported_without_regression() -> None:
    comparison = compare(bench(8), bench(9, cache=0.515), 0.05)
    assert not comparison.regressions
    assert of(comparison, "cache").outcome == "slower, below the threshold"
    assert of(compare(bench(9, cache=0.515), bench(8), 0.02), "cache").outcome == "faster"


def test_changes_below_the_control_are_not_claimed() -> None:
    def uneven(found: ResultFile) -> ResultFile:
        """A control that says that this benchmark calls equals up to 10 % different."""
        records = [
            timed(one.preset, one.round, [1.1, 1.1]) if one.preset == CONTROL and one.round % 2 else one
            for one in found.records
        ]
        return found.model_copy(update={"records": tuple(records)})

    assert of(compare(bench(10), bench(11, cache=0.515), 0.02), "cache").outcome == "regression"
    assert of(compare(uneven(bench(10)), bench(11, cache=0.515), 0.02), "cache").outcome == "cannot tell"
    assert of(compare(uneven(bench(10)), bench(11, cache=0.505), 0.05), "cache").outcome == "no change found"


def test_wide_interval_cannot_tell() -> None:
    noisy = [bench(seed, rounds=3, noise=0.2, cache=cache) for seed, cache in ((30, 0.5), (31, 0.55))]
    change = of(compare(*noisy, 0.02), "cache")
    assert change.outcome == "cannot tell"
    assert change.detectable is not None
    assert change.detectable > 0.02


def test_one_round_cannot_tell() -> None:
    change = of(compare(bench(1, rounds=1), bench(2, rounds=1, cache=2.0), 0.02), "cache")
    assert (change.outcome, change.detectable) == ("cannot tell", None)


def test_failing_preset_is_a_regression_missing_one_is_listed() -> None:
    before, after = bench(12), bench(13)
    kept = tuple(one for one in after.records if one.preset != "cache")
    crashed = record("cache", 0, status="crash", reason="It fell over.")
    failing = compare(before, after.model_copy(update={"records": (*kept, crashed)}), 0.02)
    assert [(c.preset, c.outcome, c.note) for c in failing.regressions] == [
        ("cache", "fails now", "crash: It fell over.")
    ]
    gone = compare(before, after.model_copy(update={"records": kept}), 0.02)
    assert not gone.regressions
    assert gone.left_out == ("cache on edit, 128x128, 4 steps is only in A",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"environment": OTHER_CARD}, "A was measured on Imaginary CPU 9000, B on Imaginary GPU"),
        ({"checkpoint": TINY.model_copy(update={"weights_sha256": "f" * 64})}, "measure the same weights"),
        ({"checkpoint": TINY.model_copy(update={"dtype": "bfloat16"})}, "0 in float32, B 0"),
        ({"checkpoint": RANDOM}, "B random in bfloat16"),
        ({"of": workload(steps=28)}, "A has edit, 128x128, 4 steps, B edit, 128x128, 28 steps"),
        ({"of": workload(width=256, height=256)}, "share no workload"),
    ],
)
def test_unlike_benchmarks_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        compare(bench(1), bench(2, **changes), 0.02)


def test_workloads_of_one_side_are_listed() -> None:
    other = bench(14, of=workload(steps=28))
    records = [one.model_copy(update={"run_id": f"{one.run_id}-28"}) for one in other.records]
    both = bench(15)
    comparison = compare(bench(16), both.model_copy(update={"records": (*both.records, *records)}), 0.02)
    assert {change.workload for change in comparison.changes} == {"edit, 128x128, 4 steps"}
    assert comparison.left_out == ("edit, 128x128, 28 steps is only in B",)


def test_an_emulated_kernel_is_not_a_speed() -> None:
    slow = bench(17, cache=1.0, labels=("kernel: emulated",))
    assert of(compare(bench(18, labels=("kernel: emulated",)), slow, 0.02), "cache").outcome == "cannot tell"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str, str]:
    newer = {**MACHINE, "packages": {"torch": "9.9.9"}}
    for name, stored in (
        ("a", bench(1)),
        ("b", bench(2, cache=0.515, environment=newer)),
        ("c", bench(3, environment=OTHER_CARD)),
    ):
        ResultStore(tmp_path / name).write(stored)
    return str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "c")


def test_compare_prints_a_table_and_fails_on_regression(
    folders: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, c = folders
    assert run(["compare", a, b, "--json"]) == 1
    output = capsys.readouterr()
    *table, last = output.out.splitlines()
    (row,) = [line for line in table if line.startswith("| edit") and "| cache |" in line]
    header = next(line for line in table if line.startswith("| workload"))
    assert row.count("|") == header.count("|") == 9
    assert "**regression**" in row
    assert "- packages.torch: 0.0.0 in A, 9.9.9 in B" in table
    assert "Slower or failing in B: cache" in output.err
    answer = json.loads(last)
    assert answer["regressions"] == 1
    assert {change["preset"]: change["outcome"] for change in answer["changes"]}["cache"] == "regression"
    assert run(["compare", a, b, "--threshold", "10"]) == 0
    assert run(["compare", a, a]) == 0
    assert run(["compare", a, c]) == 2
    assert run(["compare", a, a, "--threshold", "-1"]) == 2
    assert run(["compare", a, str(Path(a) / "nowhere")]) == 2
