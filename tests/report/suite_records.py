"""Synthetic records in the shapes that the suites full, ablation and cold leave. Every value is made up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kontext_fast.records.schema import CONTROL, Cell, Measurement, Memory, Record, ResultFile
from tests.records.builder import record, result, sample, timed, workload

SIZES = ((512, 512), (768, 768), (1024, 1024))
STEPS = (10, 28)
LEFT_OUT = Cell(mode="edit", size="1024x1024", steps=50, batch=1)

# More tokens, more memory: GiB of each kind at the smallest size.
GIB = {"allocated_peak_bytes": 31, "reserved_peak_bytes": 33, "device_process_peak_bytes": 34, "host_rss_peak_bytes": 2}


def sweep(*, rounds: int = 3) -> ResultFile:
    """Two presets over sizes and steps, the centre first; one cell was not reached."""
    rng = np.random.default_rng(5)
    records: list[Record] = []
    places = [(28, (1024, 1024)), *((s, size) for s in STEPS for size in SIZES if (s, size) != (28, (1024, 1024)))]
    for steps, (width, height) in places:
        cell = Cell(mode="edit", size=f"{width}x{height}", steps=steps, batch=1)
        tokens = width * height // 256
        of = workload(
            width=width, height=height, steps=steps, text_tokens=512, image_tokens=tokens, reference_tokens=tokens
        )
        centre = steps == 28 and width == 1024
        for round_ in range(rounds):
            for preset, factor in (("baseline", 1.0), *(((CONTROL, 1.0),) if centre else ()), ("fast", 0.5)):
                wall = factor * steps * tokens / 1e4 * float(np.exp(rng.normal(0, 0.01)))
                memory = Memory(**{k: int((g + tokens / 4096 + 0.1 * round_) * 2**30) for k, g in GIB.items()})
                samples = [sample("a", 9 * wall, warmup=True), *(sample(i, wall, memory=memory) for i in "ab")]
                records.append(measured(preset, round_, [(of, cell, samples)], order=len(records)))
    for preset in ("baseline", "fast"):
        why = "The budget ended."
        records.append(
            record(
                preset, 99, status="not measured", reason=why, cells=(LEFT_OUT,), checkpoint=None, environment={},
                run_id=f"{preset} left out", order=len(records),
            )
        )  # fmt: skip
    return result(records)


def ablation() -> ResultFile:
    """`p` of three parts: one that helps, one that does nothing, one that this machine refuses."""
    rng = np.random.default_rng(6)
    walls = {
        "baseline": 1.0, CONTROL: 1.0, "p": 0.5,
        "p-only-helps": 0.5, "p-without-helps": 1.0, "p-only-idle": 1.0, "p-without-idle": 0.5,
    }  # fmt: skip
    records = [
        timed(name, r, [wall * float(np.exp(rng.normal(0, 0.004))) for _ in range(4)], run_id=f"{name} {r}", order=r)
        for r in range(6)
        for name, wall in walls.items()
    ]
    refused = record("p-only-picky", 0, status="refused", reason="No compiler.", run_id="picky", order=99)
    return result([*records, refused])


def cold(*, rounds: int = 3) -> ResultFile:
    """Two presets, cold and warm, each process at two sizes."""
    records: list[Record] = []
    for round_ in range(rounds):
        for preset, compiling in (("baseline", 0.0), ("compile", 60.0)):
            for cache, share in (("cold", 1.0), ("warm", 0.1)):
                first = 2.0 + compiling * share + round_
                samples = [sample("a", first, warmup=True), sample("a", 1.0), sample("b", 1.0)]
                other = [sample("a", first / 2, warmup=True), sample("a", 1.5), sample("b", 1.5)]
                one = Measurement(workload=workload(), first_call_s=first, samples=tuple(samples))
                two = Measurement(workload=workload(width=256), first_call_s=None, samples=tuple(other))
                run = record(
                    preset, round_, compile_cache=cache, run_id=f"{preset} {round_} {cache}", order=len(records)
                )
                records.append(run.model_copy(update={"measurements": (one, two)}))
    return result(records)


def measured(preset: str, round_: int, of: Sequence[tuple[Any, Cell, Sequence[Any]]], *, order: int) -> Record:
    cells = tuple(cell for _, cell, _ in of)
    measurements = tuple(
        Measurement(workload=load, first_call_s=None, samples=tuple(samples), cell=cell) for load, cell, samples in of
    )
    run = record(preset, round_, run_id=f"{preset} {order}", order=order, cells=cells)
    return run.model_copy(update={"measurements": measurements})


def walls(stored: ResultFile, preset: str, **of_workload: object) -> dict[int, float]:
    """Mean measured seconds per round, computed from nothing but the records."""
    found: dict[int, list[float]] = {}
    for run in stored.records:
        for one in run.measurements:
            if run.preset == preset and all(getattr(one.workload, key) == value for key, value in of_workload.items()):
                found.setdefault(run.round, []).extend(s.wall_s for s in one.samples if not s.warmup)
    return {round_: float(np.mean(values)) for round_, values in found.items()}
