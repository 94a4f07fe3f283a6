from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from kontext_fast.analysis.groups import groups
from kontext_fast.analysis.rows import Row, headline
from kontext_fast.optimizations.techniques.first_block_cache import FirstBlockCache
from kontext_fast.optimizations.techniques.step_reuse import StepReuse
from kontext_fast.records.schema import EMULATED, Measurement, Memory, ResultFile
from kontext_fast.records.store import ResultStore
from kontext_fast.report.text.phrases import speed_finding
from tests.records.builder import RANDOM, full, judged, record, result, sample, timed, workload


def rows(of: ResultFile) -> dict[str, Row]:
    (group,) = groups(of)
    return {row.preset: row for row in headline(group)}


def test_times_and_factors_equal_raw_samples() -> None:
    table = rows(
        result(
            [
                timed("baseline", 0, [1.0, 3.0]),
                timed("baseline", 1, [2.0, 4.0]),
                timed("cache", 0, [0.5, 1.5]),
                timed("cache", 1, [0.7, 1.5]),
            ]
        )
    )
    baseline, cache = table["baseline"], table["cache"]
    assert baseline.time is not None
    assert baseline.time.values == (2.0, 3.0)
    assert baseline.factor is None
    assert baseline.factor_note == "reference"
    assert cache.factor is not None
    assert cache.factor.value == pytest.approx(math.sqrt((2.0 / 1.0) * (3.0 / 1.1)))
    assert cache.factor.n == 2


@pytest.mark.parametrize(
    "label",
    [
        StepReuse(computed=11).label(architecture_only=False),
        FirstBlockCache(schedule=(0, 1, 4)).label(architecture_only=False),
        FirstBlockCache(schedule="every_second").label(architecture_only=True),
    ],
    ids=["step_reuse", "steps", "every_second"],
)
def test_labels_count_the_steps_that_were_computed(label: str) -> None:
    """A preset states what 28 steps would have; a row of ten steps has those of its own."""
    runs = [timed("baseline", 0, [1.0, 1.0], of=workload(steps=10))]
    runs.append(
        record("fast", 0, [sample(i, 0.5, steps=10, skipped=6) for i in "ab"], of=workload(steps=10), labels=(label,))
    )
    (written,) = rows(result(runs))["fast"].labels
    assert "28" not in written
    assert "4 of 10 steps computed" in written


def test_warm_ups_are_excluded() -> None:
    table = rows(result([timed("baseline", 0, [1.0, 1.0])]))
    assert table["baseline"].time is not None
    assert table["baseline"].time.values == (1.0,)


def test_calls_of_one_process_are_one_value() -> None:
    table = rows(result([timed("baseline", 0, [1.0, 1.1, 0.9, 1.0])]))
    assert table["baseline"].time is not None
    assert (table["baseline"].time.mean.n, table["baseline"].time.mean.interval) == (1, None)


def test_single_round_gives_factor_without_interval() -> None:
    table = rows(result([timed("baseline", 0, [1.0, 1.0]), timed("cache", 0, [0.5, 0.5])]))
    assert table["cache"].factor is not None
    assert table["cache"].factor.interval is None
    assert "no preset can be called faster" in speed_finding(list(table.values()))


def test_rows_without_baseline_have_times_only() -> None:
    table = rows(result([timed("cache", 0, [0.5, 0.5]), timed("cache", 1, [0.5, 0.5])]))
    assert table["cache"].time is not None
    assert (table["cache"].factor, table["cache"].factor_note) == (None, "no baseline")
    assert speed_finding(list(table.values())) == "No preset could be compared with baseline."


def test_failed_baseline_leaves_other_rows_without_factor() -> None:
    failed = record("baseline", 0, status="oom", reason="The GPU has too little memory: choose a smaller size.")
    table = rows(result([failed, timed("cache", 0, [0.5, 0.5])]))
    assert (table["baseline"].status, table["baseline"].time) == ("oom", None)
    assert table["baseline"].reason == failed.reason
    assert table["cache"].factor_note == "no baseline"


def test_failed_presets_are_rows_and_partial_failures_count(tmp_path: Path) -> None:
    table = rows(full(ResultStore(tmp_path)))
    assert list(table) == ["baseline", "cache", "fragile", "compile"]
    assert (table["compile"].status, table["compile"].reason) == ("refused", "There is no C++ compiler: install g++.")
    assert len(table["compile"].failures) == 3
    assert table["fragile"].status == "ok"
    assert [failure.status for failure in table["fragile"].failures] == ["crash"]
    assert table["fragile"].factor is not None
    assert table["fragile"].factor.n == 2


def test_file_of_failures_only_has_rows() -> None:
    table = rows(result([record("baseline", 0, status="crash", reason="It fell over.", checkpoint=None)]))
    assert (table["baseline"].status, table["baseline"].time) == ("crash", None)


def test_no_records_no_groups() -> None:
    assert groups(result([])) == ()


def test_emulated_kernels_have_no_factor() -> None:
    runs = [timed("baseline", r, [1.0, 1.0]) for r in (0, 1)]
    runs += [timed("float8", r, [0.5, 0.5 + 0.01 * r], labels=(EMULATED,)) for r in (0, 1)]
    table = rows(result(runs))
    assert (table["float8"].factor, table["float8"].factor_note) == (None, "emulated kernel: not a speed")
    assert table["float8"].labels == (EMULATED,)
    assert "float8" not in speed_finding(list(table.values()))


def test_row_has_computed_steps_memory_and_cold_times() -> None:
    samples = [
        sample("a", 9.0, warmup=True, memory=Memory(allocated_peak_bytes=99)),
        sample("a", 1.0, skipped=1, memory=Memory(allocated_peak_bytes=5, host_rss_peak_bytes=7)),
        sample("b", 1.0, skipped=3, memory=Memory(allocated_peak_bytes=6)),
    ]
    row = rows(result([record("cache", 0, samples)]))["cache"]
    assert row.computed_steps is not None
    assert (row.computed_steps.low, row.computed_steps.high, row.computed_steps.total) == (1, 3, 4)
    assert row.computed_steps.mean == 2.0
    assert row.memory == Memory(allocated_peak_bytes=6, host_rss_peak_bytes=7)
    assert row.load is not None
    assert row.load.value == 3.0
    assert row.first_call is not None
    assert row.first_call.value == 9.0


def test_acceptance_counts_repeated_outputs_once(tmp_path: Path) -> None:
    table = rows(full(ResultStore(tmp_path)))
    assert table["baseline"].accepted is not None
    assert (table["baseline"].accepted.value, table["baseline"].accepted.n) == (1.0, 2)
    assert table["cache"].accepted is not None
    assert (table["cache"].accepted.value, table["cache"].accepted.n) == (0.5, 2)
    assert table["cache"].accepted_change is not None
    assert (table["cache"].accepted_change.value, table["cache"].accepted_change.interval) == (-0.5, None)
    assert table["compile"].accepted is None


def test_scores_of_another_workload_are_ignored() -> None:
    def measured(steps: int, image: str) -> Measurement:
        samples = (sample("a", 1.0, images=[image], steps=steps), sample("b", 1.0, steps=steps))
        return Measurement(workload=workload(steps=steps), first_call_s=1.0, samples=samples)

    good, bad = "0" * 64, "1" * 64
    scores = judged("a", good, done=True, kept=True) + judged("a", bad, done=False, kept=True)
    run = record("baseline", 0, measurements=(measured(4, good), measured(2, bad)), scores=scores)
    accepted = [headline(group)[0].accepted for group in groups(result([run]))]
    assert [estimate and estimate.value for estimate in accepted] == [1.0, 0.0]


def test_groups_need_equal_workload_checkpoint_and_machine() -> None:
    runs = [
        timed("baseline", 0, [1.0, 1.0]),
        timed("cache", 0, [0.5, 0.5], of=workload(steps=8)),
        timed("cache", 1, [0.5, 0.5], checkpoint=RANDOM),
        timed("cache", 2, [0.5, 0.5], environment={"cpu": "Another CPU"}),
    ]
    found = groups(result(runs))
    assert len(found) == 4
    assert all(row.factor is None for group in found for row in headline(group))


def test_out_of_memory_at_one_size_keeps_the_other() -> None:
    both = [timed("cache", 0, [1.0, 1.0]), timed("cache", 1, [4.0, 4.0], of=workload(width=256, height=256))]
    died: dict[str, Any] = {"status": "oom", "reason": "Too little memory for 256x256."}
    small, large = groups(result([timed("baseline", 0, [2.0, 2.0], **died), *both]))
    assert small.failures == ()
    assert headline(small)[0].time is not None
    assert [failure.reason for failure in headline(large)[0].failures] == ["Too little memory for 256x256."]
    assert headline(large)[0].time is None


def test_run_that_failed_after_measuring_is_a_failure() -> None:
    (group,) = groups(result([timed("baseline", 0, [1.0, 1.0], status="crash", reason="It fell over at the end.")]))
    assert [failure.status for failure in headline(group)[0].failures] == ["crash"]


def test_run_that_missed_an_item_is_not_measured() -> None:
    table = rows(result([record("cache", 0, [sample("a", 1.0)]), timed("baseline", 0, [1.0, 1.0])]))
    assert (table["cache"].status, table["cache"].time) == ("not measured", None)
    assert table["cache"].reason == "No run measured this workload in full."


def test_finding_names_fastest_preset_and_its_acceptance(tmp_path: Path) -> None:
    finding = speed_finding(list(rows(full(ResultStore(tmp_path))).values()))
    assert finding.startswith("cache is 2.00x as fast as baseline (95 % interval")
    assert "accepts 50 % (9 to 91 %) of its edits, and 100 % (34 to 100 %) of baseline's; 2 items." in finding
    assert "Not timed: compile (refused)." in finding


def test_many_untimed_presets_are_counted_by_status() -> None:
    runs = [timed("baseline", 0, [1.0, 1.0])]
    runs += [record(name, 0, status="refused", reason="No compiler.") for name in "abc"]
    assert "Not timed: a (refused), b (refused), c (refused)." in speed_finding(list(rows(result(runs)).values()))
    runs.append(record("d", 0, status="timeout", reason="It hung."))
    assert "Not timed: 4 presets (3 refused, 1 timeout)." in speed_finding(list(rows(result(runs)).values()))


def test_no_preset_is_faster_when_intervals_include_one() -> None:
    walls = {0: (1.0, 0.6), 1: (1.0, 1.6), 2: (1.0, 0.9)}
    runs = [timed("baseline", r, [b, b]) for r, (b, _) in walls.items()]
    runs += [timed("cache", r, [c, c]) for r, (_, c) in walls.items()]
    assert statistics.mean(c for _, c in walls.values()) > 1
    assert speed_finding(list(rows(result(runs)).values())) == (
        "No preset is faster than baseline beyond chance, for which more is asked without an A/A control; "
        "run `kontext bench` with its control."
    )
