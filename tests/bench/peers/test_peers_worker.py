"""Peers through the real parent and worker: records of what ran, and refusals with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from kontext_fast.bench.runner import run_suite
from kontext_fast.bench.suites import read_suite
from kontext_fast.records.schema import Record

PRESETS = ("peer:steps-12", "peer:para-attention")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    suite = read_suite("quick").resolve("tiny")
    suite = suite.override(
        presets=PRESETS, control=False, rounds=1, items=1, calls=1, max_warmup=0, sizes=("64x64",), steps=(6,)
    )
    folder: Path = tmp_path_factory.mktemp("bench")
    result = run_suite(suite, folder, device="cpu")
    return {record.preset: record for record in result.records}


def test_worker_runs_a_peer_as_a_preset(records: dict[str, Record]) -> None:
    assert {preset: record.status for preset, record in records.items()} == dict(
        zip(PRESETS, ("ok", "refused"), strict=True)
    )
    assert "TypeError" in str(records["peer:para-attention"].reason)
    (applied,) = records["peer:steps-12"].plan
    assert (applied.name, applied.effect, applied.parameters) == ("fewer_steps", "lossy", {"steps_of_28": 12})
    assert any(label.startswith("without torchao_float8") for label in records["peer:steps-12"].labels)


def test_fewer_steps_are_recorded_under_the_requested_cell(records: dict[str, Record]) -> None:
    record = records["peer:steps-12"]
    (measurement,) = record.measurements
    assert (measurement.cell,) == record.cells
    assert record.cells[0].steps == 6
    assert measurement.workload.steps == 3
    for sample in measurement.samples:
        assert sample.step_kinds == ("full",) * 3
        assert len(sample.steps_s) == 3
