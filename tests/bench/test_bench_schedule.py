"""The next run, computed from a suite and records: each finished run once, complete blocks on one machine."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from kontext_fast.bench.schedule import Run, Schedule, not_measured_cells
from kontext_fast.bench.suites import Suite, read_suite
from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import BASELINE, CONTROL, Record, Status
from tests.records.builder import record

SWEEPS = ({"name": "steps", "priority": 1, "steps": (4, 8), "rounds": 1},)


def suite_of(*presets: str, **changes: Any) -> Suite:
    return (
        read_suite("quick").resolve("tiny").override(**{"presets": presets, "rounds": 2, "control": False, **changes})
    )


def done(
    run: Run, order: int, *, status: Status = "ok", machine: str | None = "one", round_: int | None = None
) -> Record:
    return record(
        run.configuration.name,
        run.round if round_ is None else round_,
        run_id=str(order),
        order=order,
        status=status,
        cells=run.tier.cells,
        compile_cache=run.configuration.compile_cache,
        environment={} if machine is None else {"gpu": {"name": "card", "uuid_sha256": machine}},
    )


def run_all(schedule: Schedule, records: list[Record], machine: str | None = "one") -> list[Run]:
    """Finish everything on one machine, and return the runs."""
    runs = []
    while (run := schedule.next_run(records, machine)) is not None:
        assert len(schedule.remaining(records, machine)) > 0
        runs.append(run)
        records.append(done(run, len(records), machine=machine))
        assert len(runs) < 100
    assert schedule.remaining(records, machine) == []
    return runs


def blocks(records: list[Record]) -> dict[int, list[str]]:
    presets: dict[int, list[str]] = {}
    for record_ in records:
        presets.setdefault(record_.round, []).append(record_.preset)
    return presets


def test_blocks_are_complete_and_the_centre_comes_first() -> None:
    records: list[Record] = []
    schedule = Schedule(suite_of("baseline", "compile", sweeps=SWEEPS))
    assert len(schedule.remaining([], None)) == 6
    runs = run_all(schedule, records)
    assert [run.tier.name for run in runs] == ["centre"] * 4 + ["steps"] * 2
    assert list(map(sorted, blocks(records).values())) == [["baseline", "compile"]] * 3
    assert list(blocks(records)) == [0, 1, 2]


def test_control_runs_only_in_blocks_of_the_centre() -> None:
    records: list[Record] = []
    suite = suite_of("baseline", "compile", sweeps=SWEEPS, control=True)
    runs = run_all(Schedule(suite), records)
    assert Counter(run.configuration.name for run in runs) == {"baseline": 3, "compile": 3, CONTROL: 2}
    assert {run.tier.name for run in runs if run.configuration.name == CONTROL} == {"centre"}
    assert all(run.configuration.preset == BASELINE for run in runs if run.configuration.name == CONTROL)
    for presets, control in ((("baseline",), False), (("compile",), True)):
        runs = run_all(Schedule(suite_of(*presets, control=control)), [])
        assert CONTROL not in {run.configuration.name for run in runs}


def test_peers_run_at_the_centre_only() -> None:
    records: list[Record] = []
    suite = suite_of("baseline", "classic", peers=("baseline", "peer:magcache"), sweeps=SWEEPS, control=True)
    schedule = Schedule(suite)
    runs = run_all(schedule, records)
    assert Counter((run.configuration.name, run.tier.name) for run in runs) == {
        **{(name, "centre"): 2 for name in ("baseline", "classic", "peer:magcache", CONTROL)},
        **{(name, "steps"): 1 for name in ("baseline", "classic")},
    }
    assert list(not_measured_cells(schedule, suite, records)) == []
    # Listed among the presets, a peer is a preset like any other.
    runs = run_all(Schedule(suite_of("baseline", "peer:magcache", peers=("peer:magcache",), sweeps=SWEEPS)), [])
    assert Counter(run.configuration.name for run in runs) == {"baseline": 3, "peer:magcache": 3}
    with pytest.raises(InvalidInput, match="did you mean peer:magcache"):
        Schedule(suite_of("baseline", peers=("peer:magcahce",)))


def test_stop_at_any_run_keeps_the_remaining_order() -> None:
    suite = suite_of("baseline", "compile", "classic", sweeps=SWEEPS, control=True)
    whole: list[Record] = []
    expected = run_all(Schedule(suite), whole)
    for stop in range(len(whole)):
        records = whole[:stop]
        # The machine is not known in a new invocation until its first run has ended.
        rest = run_all(Schedule(suite), records, machine=None) if stop == 0 else run_all(Schedule(suite), records)
        assert rest == expected[stop:]


@pytest.mark.parametrize("status", ["interrupted", "not measured"])
def test_unfinished_run_is_repeated_but_a_failed_one_is_not(status: Status) -> None:
    schedule = Schedule(suite_of("baseline", "compile", rounds=1))
    first = schedule.next_run([], None)
    assert first is not None
    assert schedule.next_run([done(first, 0, status=status)], "one") == first
    other = schedule.next_run([done(first, 0, status="crash")], "one")
    assert other is not None
    assert other.configuration != first.configuration


def test_refused_preset_is_recorded_once() -> None:
    schedule = Schedule(suite_of("baseline", "compile", rounds=3, sweeps=SWEEPS))
    records: list[Record] = []
    while (run := schedule.next_run(records, "one")) is not None:
        status: Status = "refused" if run.configuration.name == "compile" else "ok"
        records.append(done(run, len(records), status=status))
    assert Counter(record_.preset for record_ in records) == {"baseline": 4, "compile": 1}


def test_block_never_spans_two_machines() -> None:
    schedule = Schedule(suite_of("baseline", "compile", "classic"))
    records: list[Record] = []
    for _ in range(4):
        run = schedule.next_run(records, "one")
        assert run is not None
        records.append(done(run, len(records)))
    # The fourth run began the second block. The next one runs on another machine, which is known only when it has
    # ended.
    run = schedule.next_run(records, None)
    assert run is not None
    assert run.round == 1
    fresh = schedule.new_round(records)
    records.append(done(run, len(records), machine="two", round_=fresh))
    run_all(schedule, records, machine="two")
    by_block = blocks(records)
    assert len(by_block[1]) == 1
    assert sorted(by_block[fresh]) == ["baseline", "classic", "compile"]
    assert sum(len(names) == 3 for names in by_block.values()) == 2
    for number in by_block:
        assert len({record_.environment["gpu"]["uuid_sha256"] for record_ in records if record_.round == number}) == 1


def test_incomplete_block_is_completed_on_its_machine() -> None:
    schedule = Schedule(suite_of("baseline", "compile", rounds=1))
    first = schedule.next_run([], None)
    assert first is not None
    records = [done(first, 0, machine="one")]
    elsewhere = schedule.next_run(records, "two")
    back = schedule.next_run(records, "one")
    assert elsewhere is not None
    assert back is not None
    assert (elsewhere.round != 0, back.round) == (True, 0)


def test_warm_run_follows_its_cold_run() -> None:
    suite = suite_of("baseline", "compile", "classic", rounds=20, compile_caches=("cold", "warm"))
    records: list[Record] = []
    schedule = Schedule(suite)
    seen: list[tuple[int, str, str]] = []
    for _ in range(120):
        run = schedule.next_run(records, "one")
        assert run is not None
        seen.append((run.round, run.configuration.name, run.configuration.compile_cache))
        records.append(done(run, len(records)))
    assert len(set(seen)) == 120
    for number, name, cache in seen:
        if cache == "warm":
            assert seen.index((number, name, "cold")) < seen.index((number, name, "warm"))
    firsts = {name for number in range(20) for name in [next(n for r, n, _ in seen if r == number)]}
    assert firsts == {"baseline", "compile", "classic"}


def test_not_measured_cells_are_all_cells_without_a_run() -> None:
    suite = suite_of("baseline", "compile", sweeps=SWEEPS)
    schedule = Schedule(suite)
    first = schedule.next_run([], None)
    assert first is not None
    left_out = [
        (run.configuration.name, cell.steps) for run, cell in not_measured_cells(schedule, suite, [done(first, 0)])
    ]
    other = ({"baseline", "compile"} - {first.configuration.name}).pop()
    assert sorted(left_out) == sorted([(other, 28), ("baseline", 4), ("baseline", 8), ("compile", 4), ("compile", 8)])


def test_ablation_runs_each_optimization_alone_and_left_out() -> None:
    suite = read_suite("ablation").resolve("hub")
    (tier,) = suite.tiers
    names = [configuration.name for configuration in Schedule(suite).configurations(tier)]
    parts = ["fuse_qkv", "channels_last", "first_block_cache", "compile"]
    assert names == [
        "baseline",
        "classic",
        *(f"classic-only-{part}" for part in parts),
        *(f"classic-without-{part}" for part in parts),
        "baseline-again",
    ]


def test_preset_with_one_optimization_cannot_be_ablated() -> None:
    with pytest.raises(InvalidInput, match="at least two"):
        Schedule(read_suite("ablation").resolve("hub").override(ablate=("compile",)))
