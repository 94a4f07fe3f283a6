"""What does the same work stands together, and a chart shows no more rows than a reader takes in."""

from __future__ import annotations

from collections.abc import Iterable

from kontext_fast.analysis.benchmark import AnalyzedGroup, analyze_benchmark
from kontext_fast.analysis.rows import Row
from kontext_fast.analysis.tiers import MOST_ROWS, shown_rows, tiers
from kontext_fast.records.schema import AppliedOptimization
from tests.records.builder import record, result, timed

PEERS = {"peer:compiled": 1.4, "peer:slow": 1.9, "peer:slower": 2.0, "peer:steps-2": 0.55, "peer:steps-2-slow": 0.7}
OURS = {"faithful": 1.2, "turbo": 0.5, "fast": 0.52}


def group(seconds: dict[str, float], failed: tuple[str, ...] = ()) -> AnalyzedGroup:
    runs = [record(preset, 0, status="crash", reason="It was killed by signal 9.") for preset in failed]
    for preset, value in {"baseline": 2.1, "baseline-again": 2.1, **seconds}.items():
        skips = preset in ("turbo", "fast") or "steps-2" in preset
        plan = (AppliedOptimization(name="skips", effect="lossy"),) if skips else ()
        runs.append(timed(preset, 0, [value, value], skipped=2 if skips else 0, plan=plan))
    (analyzed,) = analyze_benchmark(result(runs))
    return analyzed


def names(rows: Iterable[Row]) -> list[str]:
    return [row.preset for row in rows]


def test_few_rows_are_all_shown() -> None:
    few = group({"faithful": 1.2, "peer:compiled": 1.4, "peer:slow": 1.9})
    assert names(shown_rows(few)) == ["baseline", "peer:slow", "peer:compiled", "faithful"]


def test_many_rows_keep_ours_and_the_best_rivals() -> None:
    many = group(OURS | PEERS, failed=("low_memory", "peer:broken"))
    assert len(many.rows) > MOST_ROWS
    rivals = {tier.best_rival.preset for tier in tiers(many) if tier.best_rival}
    assert rivals == {"peer:compiled", "peer:steps-2"}
    shown = names(shown_rows(many))
    assert set(shown) == {"baseline", *OURS, *rivals, "low_memory"}
    assert shown[:3] == ["baseline", "peer:compiled", "faithful"]
    assert shown[-1] == "low_memory"
