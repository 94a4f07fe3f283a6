"""A project with records of a card that was never there, in the folders that its benchmarks would leave."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from kontext_fast.records.schema import CONTROL, Cell, Measurement, Memory, Record, ResultFile
from kontext_fast.records.store import ResultStore
from tests.records.builder import RANDOM, record, result, sample, workload
from tests.report import suite_records

CARD = {
    "cpu": "Imaginary CPU 9000",
    "packages": {"torch": "0.0.0", "diffusers": "0.0.1"},
    "gpu": {"name": "NVIDIA H200", "uuid_sha256": "0" * 64, "driver": "0.0"},
    "device": "cuda:0",
}
CELL = Cell(mode="edit", size="1024x1024", steps=28, batch=1)
FEWER = "runs 8 steps where 28 are asked for"
SCHEDULED = "fixed schedule: 12 of 28 steps"

SECONDS: Mapping[str, tuple[float, int, int]] = {
    "baseline": (10.3, 28, 28),
    CONTROL: (10.3, 28, 28),
    "faithful": (8.0, 28, 28),
    "balanced": (5.6, 28, 28),
    "fast": (3.4, 28, 28),
    "turbo": (2.2, 28, 12),
    "peer:compiled": (8.2, 28, 28),
    "peer:cache-dit-12-of-28": (2.8, 28, 12),
    "peer:steps-8": (1.9, 8, 8),
}
"""Of every preset: a call, the steps that ran and those of them that were computed."""

REFUSED = {"peer:para-attention": "It fails on diffusers 0.42 (TypeError); use peer:first-block-cache."}

README = """\
# A project
<!-- records: pitch -->
<!-- /records: pitch -->
<!-- records: picture -->
<!-- /records: picture -->
<!-- records: choices -->
<!-- /records: choices -->
<!-- records: rivals -->
<!-- /records: rivals -->
<!-- records: measured -->
<!-- /records: measured -->
<!-- records: tiny_edit -->
<!-- /records: tiny_edit -->
Words of a person.
<!-- records: headline -->
<!-- /records: headline -->
<!-- records: presets -->
<!-- /records: presets -->
"""
GUIDE = """\
# Results
<!-- records: charts -->
<!-- /records: charts -->
<!-- records: provenance -->
<!-- /records: provenance -->
"""


def project(root: Path, *, rounds: int | None = None, suites: bool = False) -> Path:
    """Without `rounds` no records; `suites` adds the sweeps, the ablation and the cold starts."""
    (root / "docs").mkdir(parents=True)
    (root / "README.md").write_text(README)
    (root / "docs" / "results.md").write_text(GUIDE)
    if rounds is not None:
        _write(root, "peers", peers(rounds), "kontext bench --checkpoint random --peers")
    if suites:
        for name, made in (
            ("full", suite_records.sweep()),
            ("ablation", suite_records.ablation()),
            ("cold", suite_records.cold()),
        ):
            _write(root, name, _on_the_card(made, name), f"kontext bench --checkpoint random --suite {name}")
    return root


def peers(rounds: int) -> ResultFile:
    """Every process makes three timed calls after two of warm-up, as on a card that costs money."""
    rng = np.random.default_rng(7)
    records: list[Record] = []
    for round_ in range(rounds):
        for preset, (seconds, steps, computed) in SECONDS.items():
            walls = [seconds * float(np.exp(rng.normal(0, 0.004))) for _ in range(3)]
            records.append(_run(preset, round_, walls, steps, computed, order=len(records)))
        if round_ == 0:
            for preset, reason in REFUSED.items():
                records.append(
                    record(
                        preset, 0, status="refused", reason=reason, environment=CARD, checkpoint=None, cells=(CELL,),
                        order=len(records), load_s=None, apply_s=None, created_at=_time(len(records)),
                    )
                )  # fmt: skip
    return result(records)


def _run(preset: str, round_: int, walls: list[float], steps: int, computed: int, *, order: int) -> Record:
    # The workload of the sweep's centre: another folder that measured the same.
    of = workload(
        width=1024, height=1024, steps=steps, text_tokens=512, image_tokens=4096, reference_tokens=4096
    )  # fmt: skip
    memory = Memory(
        allocated_peak_bytes=36 * 2**30, reserved_peak_bytes=38 * 2**30, device_process_peak_bytes=39 * 2**30,
        host_rss_peak_bytes=3 * 2**30,
    )  # fmt: skip
    warm = [sample("a", seconds, warmup=True, steps=steps, memory=memory) for seconds in (2 * walls[0], walls[0])]
    timed = [
        sample(name, wall, steps=steps, skipped=steps - computed, memory=memory)
        for name, wall in zip("aba", walls, strict=True)
    ]
    labels = {"peer:steps-8": (FEWER,), "peer:cache-dit-12-of-28": (SCHEDULED,)}.get(preset, ())
    made = record(
        preset, round_, warm, of=of, environment=CARD, checkpoint=RANDOM, cells=(CELL,), labels=labels, order=order,
        created_at=_time(order), load_s=14.0, apply_s=1.0,
    )  # fmt: skip
    measurement = Measurement(workload=of, first_call_s=warm[0].wall_s, samples=(*warm, *timed), cell=CELL)
    return made.model_copy(update={"measurements": (measurement,)})


def _on_the_card(made: ResultFile, name: str) -> ResultFile:
    records = [
        one.model_copy(
            update={
                "run_id": f"{name} {one.run_id}",
                "cells": one.cells or (CELL.model_copy(update={"size": name}),),
                "checkpoint": one.checkpoint and RANDOM,
                "environment": one.environment and CARD,
                "measurements": tuple(
                    measurement.model_copy(update={"cell": measurement.cell or CELL.model_copy(update={"size": name})})
                    for measurement in one.measurements
                ),
                "created_at": _time(1000 + one.order),
            }
        )
        for one in made.records
    ]
    return made.model_copy(update={"records": tuple(records), "suite": name})


def _write(root: Path, name: str, made: ResultFile, command: str) -> None:
    ResultStore(root / "results" / "h200" / name).write(made.model_copy(update={"command": command}))


def _time(order: int) -> str:
    return (datetime(2026, 11, 1, tzinfo=UTC) + timedelta(minutes=order)).isoformat(timespec="seconds")
