"""What comes next, decided from a suite and records: every finished run once, blocks whole and on one machine."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from kontext_fast.bench.runner import Durations
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


def work_off(schedule: Schedule, records: list[Record], machine: str | None = "one") -> list[Run]:
    """Finish everything on one machine, and say what was run."""
    runs = []
    while (run := schedule.next_run(records, machine)) is not None:
        assert len(schedule.remaining(records, machine)) > 0
        runs.append(run)
        records.append(done(run, len(records), machine=machine))
        assert len(runs) < 100
    assert schedule.remaining(records, machine) == []
    return runs


def blocks(records: list[Record]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for one in records:
        found.setdefault(one.round, []).append(one.preset)
    return found


def test_every_block_is_whole_and_the_centre_comes_first() -> None:
    records: list[Record] = []
    schedule = Schedule(suite_of("baseline", "compile", sweeps=SWEEPS))
    assert len(schedule.remaining([], None)) == 6
    runs = work_off(schedule, records)
    assert [run.tier.name for run in runs] == ["centre"] * 4 + ["steps"] * 2
    assert list(map(sorted, blocks(records).values())) == [["baseline", "compile"]] * 3
    assert list(blocks(records)) == [0, 1, 2]


def test_baseline_runs_twice_per_block_of_the_centre_unless_asked_not_to() -> None:
    records: list[Record] = []
    suite = suite_of("baseline", "compile", sweeps=SWEEPS, control=True)
    runs = work_off(Schedule(suite), records)
    assert Counter(run.configuration.name for run in runs) == {"baseline": 3, "compile": 3, CONTROL: 2}
    assert {run.tier.name for run in runs if run.configuration.name == CONTROL} == {"centre"}
    assert all(run.configuration.preset == BASELINE for run in runs if run.configuration.name == CONTROL)
    for presets, control in ((("baseline",), False), (("compile",), True)):
        runs = work_off(Schedule(suite_of(*presets, control=control)), [])
        assert CONTROL not in {run.configuration.name for run in runs}


def test_peers_are_compared_at_the_centre_and_take_no_part_in_sweeps() -> None:
    records: list[Record] = []
    suite = suite_of("baseline", "classic", peers=("baseline", "peer:magcache"), sweeps=SWEEPS, control=True)
    schedule = Schedule(suite)
    runs = work_off(schedule, records)
    assert Counter((run.configuration.name, run.tier.name) for run in runs) == {
        **{(name, "centre"): 2 for name in ("baseline", "classic", "peer:magcache", CONTROL)},
        **{(name, "steps"): 1 for name in ("baseline", "classic")},
    }
    assert list(not_measured_cells(schedule, suite, records)) == []
    # Asked for as a preset, a peer is one like any other.
    runs = work_off(Schedule(suite_of("baseline", "peer:magcache", peers=("peer:magcache",), sweeps=SWEEPS)), [])
    assert Counter(run.configuration.name for run in runs) == {"baseline": 3, "peer:magcache": 3}
    with pytest.raises(InvalidInput, match="did you mean peer:magcache"):
        Schedule(suite_of("baseline", peers=("peer:magcahce",)))


def test_stopping_anywhere_changes_nothing() -> None:
    suite = suite_of("baseline", "compile", "classic", sweeps=SWEEPS, control=True)
    whole: list[Record] = []
    expected = work_off(Schedule(suite), whole)
    for stop in range(len(whole)):
        records = whole[:stop]
        # The machine is not known in a new invocation until its first run has ended.
        rest = work_off(Schedule(suite), records, machine=None) if stop == 0 else work_off(Schedule(suite), records)
        assert rest == expected[stop:]


@pytest.mark.parametrize("status", ["interrupted", "not measured"])
def test_what_was_not_finished_is_run_again_and_what_failed_is_not(status: Status) -> None:
    schedule = Schedule(suite_of("baseline", "compile", rounds=1))
    first = schedule.next_run([], None)
    assert first is not None
    assert schedule.next_run([done(first, 0, status=status)], "one") == first
    other = schedule.next_run([done(first, 0, status="crash")], "one")
    assert other is not None
    assert other.configuration != first.configuration


def test_a_refused_preset_is_recorded_once() -> None:
    schedule = Schedule(suite_of("baseline", "compile", rounds=3, sweeps=SWEEPS))
    records: list[Record] = []
    while (run := schedule.next_run(records, "one")) is not None:
        status: Status = "refused" if run.configuration.name == "compile" else "ok"
        records.append(done(run, len(records), status=status))
    assert Counter(one.preset for one in records) == {"baseline": 4, "compile": 1}


def test_a_block_never_spans_two_machines() -> None:
    schedule = Schedule(suite_of("baseline", "compile", "classic"))
    records: list[Record] = []
    for _ in range(4):
        run = schedule.next_run(records, "one")
        assert run is not None
        records.append(done(run, len(records)))
    # The fourth began the second block. The next run is made on another machine, which shows only when it has ended.
    run = schedule.next_run(records, None)
    assert run is not None
    assert run.round == 1
    fresh = schedule.new_round(records)
    records.append(done(run, len(records), machine="two", round_=fresh))
    work_off(schedule, records, machine="two")
    by_block = blocks(records)
    assert len(by_block[1]) == 1
    assert sorted(by_block[fresh]) == ["baseline", "classic", "compile"]
    assert sum(len(names) == 3 for names in by_block.values()) == 2
    for number in by_block:
        assert len({one.environment["gpu"]["uuid_sha256"] for one in records if one.round == number}) == 1


def test_a_half_block_is_ended_where_it_was_begun() -> None:
    schedule = Schedule(suite_of("baseline", "compile", rounds=1))
    first = schedule.next_run([], None)
    assert first is not None
    records = [done(first, 0, machine="one")]
    elsewhere = schedule.next_run(records, "two")
    back = schedule.next_run(records, "one")
    assert elsewhere is not None
    assert back is not None
    assert (elsewhere.round != 0, back.round) == (True, 0)


def test_a_warm_cache_comes_after_the_cold_one_that_fills_it() -> None:
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


def test_what_a_budget_leaves_out_is_every_cell_without_a_run() -> None:
    suite = suite_of("baseline", "compile", sweeps=SWEEPS)
    schedule = Schedule(suite)
    first = schedule.next_run([], None)
    assert first is not None
    left_out = [
        (run.configuration.name, cell.steps) for run, cell in not_measured_cells(schedule, suite, [done(first, 0)])
    ]
    other = ({"baseline", "compile"} - {first.configuration.name}).pop()
    assert sorted(left_out) == sorted([(other, 28), ("baseline", 4), ("baseline", 8), ("compile", 4), ("compile", 8)])


def test_times_of_runs_that_were_not_made_are_guessed_by_their_work() -> None:
    suite = suite_of("baseline", "compile", sweeps=({"name": "steps", "priority": 1, "steps": (14, 42)},))
    runs = Schedule(suite).remaining([], None)
    centre, other = runs[0], next(run for run in runs if run.configuration != runs[0].configuration)
    sweep = next(run for run in runs if run.tier != centre.tier and run.configuration == centre.configuration)
    durations = Durations()
    assert durations.of(centre) is None
    assert durations.of_all([centre]) is None
    durations.add(centre, 10.0)
    assert durations.of(centre) == 10.0
    assert durations.of(other) == 10.0
    assert durations.of(sweep) == pytest.approx(10.0 * (14 + 42) / 28)
    assert durations.of_all([centre, other]) == 20.0
