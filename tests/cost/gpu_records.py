"""Synthetic records of GPUs and prices for the tests of cost. Every number is made up."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

from kontext_fast.cost import Billing
from kontext_fast.cost.billing import Tariff
from kontext_fast.cost.prices import Price
from kontext_fast.cost.work import Work
from kontext_fast.records.schema import Measurement, Memory, Record, ResultFile
from kontext_fast.records.store import ResultStore
from kontext_fast.stats.intervals import Estimate
from tests.records.builder import RANDOM, record, result, sample, workload

TODAY = date(2026, 11, 1)
ROUNDS = 3
SECONDS = {"baseline": 10.0, "compile": 6.0, "classic": 4.0}
FIRST_CALL_S = {"baseline": 12.0, "compile": 206.0, "classic": 204.0}


def price(usd_per_hour: float = 3.0, **changes: Any) -> Price:
    values: dict[str, Any] = {
        "id": "made-up",
        "provider": "nobody",
        "product": "nothing",
        "region": "nowhere",
        "kind": "on-demand",
        "card": "H200",
        "memory_gib": 140.0,
        "usd_per_hour": usd_per_hour,
        "source": "made up",
        "day": TODAY,
    }
    return Price(**(values | changes))


def tariff(billing: Billing, usd_per_hour: float = 3.0, rho_max: float = 0.7, **changes: Any) -> Tariff:
    kind = "reserved" if billing == "reserved" else "on-demand"
    return Tariff(billing=billing, price=price(usd_per_hour, kind=kind, **changes), rho_max=rho_max)


def work(seconds: float, interval: tuple[float, float] | None = None, **changes: Any) -> Work:
    return Work(seconds=Estimate(seconds, interval, 3 if interval else 1), **changes)


def gpu_run(
    preset: str,
    round_: int,
    *,
    device: str = "NVIDIA H200",
    peak_gib: float = 36.0,
    process_gib: float | None = None,
    **changes: Any,
) -> Record:
    """A run of items a and b that takes `SECONDS` of the preset, 2 % longer in every later round.

    `peak_gib` is what torch allocated, `process_gib` what the whole process held, where that was counted.
    """
    held = None if process_gib is None else int(process_gib * 2**30)
    memory = Memory(allocated_peak_bytes=int(peak_gib * 2**30), device_process_peak_bytes=held)
    of = workload(width=1024, height=1024, steps=28)
    wall = SECONDS[preset] * (1 + 0.02 * round_)
    samples = (
        sample("a", FIRST_CALL_S[preset], warmup=True, memory=memory, steps=28),
        *(sample(item, wall, memory=memory, steps=28) for item in "ab"),
    )
    made = record(
        preset,
        round_,
        samples,
        of=of,
        checkpoint=RANDOM,
        environment={"cpu": "Imaginary CPU 9000", "gpu": {"name": device}, "device": "cuda:0"},
        load_s=30.0,
        apply_s=1.0,
        **changes,
    )
    measurement = Measurement(workload=of, first_call_s=FIRST_CALL_S[preset], samples=samples)
    return made.model_copy(update={"measurements": (measurement,)})


def gpu_result(*, device: str = "NVIDIA H200", peak_gib: float = 36.0, rounds: int = ROUNDS) -> ResultFile:
    return result(
        [
            gpu_run(preset, round_, device=device, peak_gib=peak_gib, order=round_ * 10 + order)
            for round_ in range(rounds)
            for order, preset in enumerate(SECONDS)
        ]
    )


def stored(folder: Path, records: ResultFile) -> Path:
    ResultStore(folder).write(records)
    return folder
