"""Which runs are compared with each other, and which failures belong to them."""

from __future__ import annotations

import pytest

from kontext_fast.analysis.groups import groups
from kontext_fast.analysis.rows import headline
from kontext_fast.records.schema import Cell, Record
from tests.records.builder import record, result, timed

CENTRE = Cell(mode="edit", size="native", steps=4, batch=1)
LATER = Cell(mode="edit", size="native", steps=28, batch=1)


def test_runs_of_other_cells_are_not_failures_of_a_workload() -> None:
    good = timed("baseline", 0, [1.0, 1.0])
    good = good.model_copy(
        update={
            "cells": (CENTRE,),
            "measurements": tuple(m.model_copy(update={"cell": CENTRE}) for m in good.measurements),
        }
    )
    crashed = record("cache", 1, status="crash", reason="It fell over.", cells=(CENTRE,), checkpoint=None)
    left_out = record(
        "baseline",
        2,
        status="not measured",
        reason="The budget ended.",
        cells=(LATER,),
        checkpoint=None,
        environment={},
    )
    centre, rest = groups(result([good, crashed, left_out]))
    assert centre.presets == ("baseline", "cache")
    assert centre.failures == (crashed,)
    assert (rest.workload, rest.failures) == (None, (left_out,))
    (row,) = headline(rest)
    assert (row.status, row.reason) == ("not measured", "The budget ended.")


def of_seed(seed: int, kind: str) -> Record:
    run = timed("baseline", seed, [1.0, 1.0], run_id=str(seed))
    assert run.checkpoint is not None
    (measurement,) = run.measurements
    workload = measurement.workload.model_copy(update={"seeds": (seed,)})
    return run.model_copy(
        update={
            "checkpoint": run.checkpoint.model_copy(update={"kind": kind}),
            "measurements": (measurement.model_copy(update={"workload": workload}),),
        }
    )


@pytest.mark.parametrize(("kind", "count"), [("random", 1), ("tiny", 2)])
def test_blocks_of_other_seeds_are_alike_with_random_weights(kind: str, count: int) -> None:
    assert len(groups(result([of_seed(0, kind), of_seed(1, kind)]))) == count


def test_cold_and_warm_caches_are_different_groups() -> None:
    runs = [
        timed("baseline", 0, [1.0, 1.0], compile_cache=cache, run_id=cache, load_s=load)
        for cache, load in (("cold", 9.0), ("warm", 2.0))
    ]
    cold, warm = groups(result(runs))
    assert [headline(group)[0].load.value for group in (cold, warm) if headline(group)[0].load] == [9.0, 2.0]
    assert (cold.compile_cache, warm.compile_cache) == ("cold", "warm")
