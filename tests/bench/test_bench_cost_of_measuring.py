"""Measuring may cost no more than 1 % of what is measured, even with a driver that answers slowly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kontext_fast.bench import measure
from kontext_fast.bench.compilations import graphs_compiled
from kontext_fast.bench.gpu_readings import Card, GpuWatch
from kontext_fast.bench.measure import Bench
from kontext_fast.bench.memory import PeakMemory
from kontext_fast.bench.suites import read_suite
from kontext_fast.bench.timing import StageClock
from kontext_fast.bench.workloads import Task, tasks
from kontext_fast.pipeline.edit import edit
from kontext_fast.stats.summary import mean_estimate
from tests.bench.test_bench_gpu_readings import FakeNvml

STEPS = 28
PAIRS = 80
ANSWER_S = 0.0005
"""How long the stand-in for the driver takes to answer; real ones take a tenth of that for most questions."""


class SlowNvml(FakeNvml):
    def _say(self, name: str, value: Any) -> Any:
        time.sleep(ANSWER_S)
        return super()._say(name, value)


@pytest.fixture(scope="module")
def pipe() -> Any:
    from kontext_fast.pipeline.load import load

    return load("tiny", device="cpu").pipe


@pytest.fixture(scope="module")
def task(pipe: Any) -> Task:
    suite = read_suite("quick").resolve("tiny")
    return tasks(pipe, suite.tiers[0].cells[0], suite)[0]


def card() -> Card:
    return Card(SlowNvml(), "GPU-0000")


@contextmanager
def everything_that_measures(pipe: Any) -> Iterator[None]:
    """What `Bench` does around a call."""
    before = graphs_compiled()
    memory = PeakMemory(pipe._execution_device)
    with GpuWatch(card()) as watch, StageClock(pipe) as clock:
        yield
    clock.times()
    memory.read(device_process_peak_bytes=watch.process_peak_bytes)
    assert watch.readings is not None
    assert graphs_compiled() == before


def cpu_seconds(call: Callable[[], object]) -> float:
    """Of all threads of this process, which other programs on the machine disturb least."""
    start = time.process_time()
    call()
    return time.process_time() - start


def test_the_test_wraps_a_call_in_all_that_a_bench_does() -> None:
    source = Path(measure.__file__).read_text()
    for name in ("GpuWatch(", "StageClock(", "PeakMemory(", "graphs_compiled("):
        assert name in source
    assert Bench._call.__code__.co_names.count("edit") == 1


class Stages:
    """Where a pipeline spends its time, with nothing to spend it on."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def idle_pipeline() -> Any:
    return SimpleNamespace(
        _execution_device=torch.device("cpu"), encode_prompt=lambda: None, vae=Stages(), scheduler=Stages()
    )


@pytest.mark.slow
def test_what_measuring_does_fits_into_one_percent_of_an_edit(pipe: Any, task: Task) -> None:
    """All that a measured call adds, timed on its own: marks on every step and stage, memory, and the thread."""
    assert task.request.steps == STEPS
    edit_s = min(cpu_seconds(lambda: edit(pipe, task.request)) for _ in range(2))
    idle = idle_pipeline()

    def measure_nothing() -> None:
        with everything_that_measures(idle):
            idle.encode_prompt()
            idle.vae.encode()
            idle.scheduler.set_begin_index()
            for _ in range(STEPS):
                idle.scheduler.step()
            idle.vae.decode()
            time.sleep(edit_s)

    measure_nothing()
    assert min(cpu_seconds(measure_nothing) for _ in range(3)) < 0.01 * edit_s


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_edit_takes_less_than_one_percent_longer_with_it_than_without(
    pipe: Any, task: Task, record_property: Callable[[str, object], None]
) -> None:
    """Interleaved: with and without take turns in who comes first."""

    def plain() -> None:
        edit(pipe, task.request)

    def measured() -> None:
        with everything_that_measures(pipe):
            edit(pipe, task.request)

    for warm_up in (plain, measured):
        warm_up()
    logs = []
    for pair in range(PAIRS):
        first, second = (plain, measured) if pair % 2 else (measured, plain)
        took = {call: cpu_seconds(call) for call in (first, second)}
        logs.append(math.log(took[measured] / took[plain]))
    interval = mean_estimate(logs).interval
    assert interval is not None
    percent = tuple(round(100 * math.expm1(bound), 2) for bound in interval)
    record_property("cost of measuring in percent, 95 % interval", percent)
    assert percent[1] < 1, f"measuring costs {percent} %"
