from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kontext_fast.analysis.groups import groups
from kontext_fast.analysis.rows import headline
from kontext_fast.errors import InvalidInput
from kontext_fast.records.merge import load_all, merge_results
from kontext_fast.records.schema import Cell, Record, ResultFile
from kontext_fast.records.store import ResultStore
from tests.records.builder import item, record, result, timed

CELL = Cell(mode="edit", size="native", steps=4, batch=1)


def bench(name: str, day: int, baseline: list[float], fast: list[float], **changes: object) -> ResultFile:
    """One block per value, and the two presets take turns in who comes first."""
    records: list[Record] = []
    for round_, times in enumerate(zip(baseline, fast, strict=True)):
        for preset, wall in zip(("baseline", name), times, strict=True):
            run = timed(
                preset,
                round_,
                [wall, wall],
                run_id=f"{name} {preset} {round_}",
                order=len(records),
                created_at=f"2001-02-{day:02d}T04:0{len(records)}:00+00:00",
            )
            records.append(run)
    return result(records).model_copy(update={"suite": name, "command": f"kontext bench --suite {name}", **changes})


def test_factors_of_merged_files_are_paired_within_blocks() -> None:
    # Twice as slow a machine on the second day: pairing across files would give 1x and 4x.
    slow = bench("p", 2, [4.0, 4.2], [2.0, 2.1])
    both = merge_results([slow, bench("q", 1, [2.0, 2.2], [1.0, 1.1])])
    (group,) = groups(both)
    factors = {row.preset: row.factor for row in headline(group)}
    assert [len(group.runs_of(preset)) for preset in ("baseline", "p", "q")] == [4, 2, 2]
    for preset in "pq":
        factor = factors[preset]
        assert factor is not None
        assert factor.value == pytest.approx(2.0)
        assert factor.n == 2


def test_merged_runs_are_ordered_by_creation() -> None:
    both = merge_results([bench("late", 2, [1.0, 1.0], [1.0, 1.0]), bench("early", 1, [1.0], [1.0])])
    assert [record.order for record in both.records] == list(range(6))
    assert [record.run_id.split()[0] for record in both.records] == ["early"] * 2 + ["late"] * 4
    assert [record.round for record in both.records] == [2, 2, 0, 0, 1, 1]
    assert both.suite_sha256 == hashlib.sha256("\n".join(["0" * 64] * 2).encode()).hexdigest()
    assert both.suite == "late and early"
    assert both.command == "kontext bench --suite late; kontext bench --suite early"


def test_benchmark_without_a_run_takes_no_block() -> None:
    both = merge_results([result([]), bench("a", 1, [1.0], [1.0])])
    assert [record.round for record in both.records] == [0, 0]


def test_merged_item_keeps_the_stored_image() -> None:
    with_image = bench("a", 1, [1.0], [1.0], items=(item("a", "0" * 64),))
    both = merge_results([bench("b", 2, [1.0], [1.0]), with_image])
    assert {item.id: item.image for item in both.items} == {"a": "0" * 64, "b": None}
    other = bench("c", 3, [1.0], [1.0], items=(item("a", "1" * 64),))
    assert merge_results([with_image, other]).items[0].image == "0" * 64


def test_a_folder_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    stores = [ResultStore(tmp_path / name) for name in "ab"]
    for day, store in enumerate(stores, start=1):
        store.write(bench(store.folder.name, day, [1.0], [1.0], seed=day))
    first, second = (store.folder for store in stores)
    assert load_all([first, first / "results"]) == stores[0].load()
    both = load_all([second, first])
    assert (both.suite, both.seed, len(both.records)) == ("b and a", 2, 4)


def test_cell_measured_elsewhere_is_not_missing() -> None:
    def left_out(preset: str) -> Record:
        return record(preset, 0, status="not measured", reason="Budget.", cells=(CELL,), run_id=f"left out {preset}")

    done = timed("fast", 0, [1.0, 1.0], cells=(CELL,))
    both = merge_results([result([left_out("fast"), left_out("slow")]), result([done])])
    assert [run.run_id for run in both.records if run.status == "not measured"] == ["left out slow"]
    unplanned = record("fast", 0, status="not measured", reason="It was refused.", run_id="unplanned")
    assert "unplanned" in {run.run_id for run in merge_results([result([unplanned]), result([done])]).records}


def test_copied_run_is_refused() -> None:
    benchmark = bench("a", 1, [1.0], [1.0])
    with pytest.raises(InvalidInput, match="a baseline 0 is in two folders"):
        merge_results([benchmark, benchmark])
