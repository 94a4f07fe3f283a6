"""Measuring costs at most 1 % of an edit, even with a slow driver."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kontext_fast.bench import measure
from kontext_fast.bench.measure import Bench, PeakMemory, graphs_compiled
from kontext_fast.bench.nvml import GpuMonitor, NvmlDevice
from kontext_fast.bench.suites import read_suite
from kontext_fast.bench.timing import StageClock
from kontext_fast.bench.workloads import Task, tasks
from kontext_fast.pipeline.edit import edit
from kontext_fast.stats.intervals import mean_estimate
from tests.bench.test_bench_nvml import FakeNvml

STEPS = 28
CPU = torch.device("cpu")
TIMES = 10
"""How many measurements are active at once, so that their cost exceeds the noise of a busy machine; one measurement
costs a tenth of it."""
HALF_WIDTH = 0.03
"""Required half-width of the interval as a fraction of an edit: 0.3 % of it for one measurement."""
FEWEST_PAIRS, MOST_PAIRS = 12, 150
"""Number of pairs: as many as that half-width needs on this machine, within these limits."""
ANSWER_S = 0.0005
"""How long the fake driver takes per reading; real drivers take a tenth of it for most readings."""


class SlowNvml(FakeNvml):
    def _reading(self, name: str, value: Any) -> Any:
        time.sleep(ANSWER_S)
        return super()._reading(name, value)


@pytest.fixture(scope="module")
def pipe() -> Any:
    from kontext_fast.pipeline.load import load

    return load("tiny", device="cpu").pipe


@pytest.fixture(scope="module")
def task(pipe: Any) -> Task:
    suite = read_suite("quick").resolve("tiny")
    return tasks(pipe, suite.tiers[0].cells[0], suite)[0]


@pytest.fixture(scope="module")
def small(pipe: Any) -> Task:
    """The same number of steps on fewer tokens: a shorter edit, of which measuring is a larger part."""
    suite = read_suite("quick").resolve("tiny").override(sizes=("64x64",))
    return tasks(pipe, suite.tiers[0].cells[0], suite)[0]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other use processor time, and more of it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def card() -> NvmlDevice:
    return NvmlDevice(SlowNvml(), "GPU-0000")


@contextmanager
def all_measurements(pipe: Any) -> Iterator[None]:
    """Everything that `Bench` does around a call."""
    before = graphs_compiled()
    memory = PeakMemory(CPU)
    with GpuMonitor(card()) as monitor, StageClock(pipe, CPU) as clock:
        yield
    clock.times()
    memory.read(device_process_peak_bytes=monitor.process_peak_bytes)
    assert monitor.readings is not None
    assert graphs_compiled() == before


def cpu_seconds(call: Callable[[], object]) -> float:
    """Processor time of all threads of this process, which other programs disturb least."""
    start = time.process_time()
    call()
    return time.process_time() - start


def test_helper_measures_all_that_bench_measures() -> None:
    source = Path(measure.__file__).read_text()
    for name in ("GpuMonitor(", "StageClock(", "PeakMemory(", "graphs_compiled("):
        assert name in source
    assert Bench._call.__code__.co_names.count("edit") == 1


class Stages:
    """The parts of a pipeline, with methods that do nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def idle_pipeline() -> Any:
    return SimpleNamespace(
        _execution_device=torch.device("cpu"), encode_prompt=lambda: None, vae=Stages(), scheduler=Stages()
    )


@pytest.mark.slow
def test_measuring_alone_takes_under_one_percent_of_an_edit(pipe: Any, task: Task) -> None:
    """Everything that measuring adds, timed alone: marks on every step and stage, memory, and the thread."""
    assert task.request.steps == STEPS
    edit_s = min(cpu_seconds(lambda: edit(pipe, task.request)) for _ in range(2))
    idle = idle_pipeline()

    def measure_nothing() -> None:
        with all_measurements(idle):
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
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("wasted", [0.0, 0.03])
def test_measured_edit_is_less_than_one_percent_slower(
    wasted: float, pipe: Any, small: Task, record_property: Callable[[str, object], None]
) -> None:
    """Calls with and without it alternate; a measurement that wastes three percent is detected in the same way."""
    assert small.request.steps == STEPS

    def plain() -> None:
        edit(pipe, small.request)

    def measured() -> None:
        begin = time.process_time()
        with ExitStack() as stack:
            for _ in range(TIMES):
                stack.enter_context(all_measurements(pipe))
            edit(pipe, small.request)
        end = time.process_time() + TIMES * wasted * (time.process_time() - begin)
        while time.process_time() < end:
            pass

    low, high = (bound / TIMES for bound in cost_in_percent(plain, measured))
    record_property("cost of measuring in percent, 95 % interval", (round(low, 2), round(high, 2)))
    if wasted:
        assert low > 1, f"what wastes {wasted:.0%} was taken to cost {low:.2f} to {high:.2f} %"
    else:
        assert high < 1, f"measuring costs {low:.2f} to {high:.2f} %"


def cost_in_percent(plain: Callable[[], None], other: Callable[[], None]) -> tuple[float, float]:
    """The 95 % interval of how much longer `other` takes, each call between two of `plain`.

    The stopping rule uses the width of the interval only, not its position.
    """
    for warm_up in (plain, other):
        warm_up()
    logs: list[float] = []
    before = cpu_seconds(plain)
    while True:
        took, after = cpu_seconds(other), cpu_seconds(plain)
        logs.append(math.log(took) - (math.log(before) + math.log(after)) / 2)
        before = after
        interval = mean_estimate(logs).interval
        if interval is None or len(logs) < FEWEST_PAIRS:
            continue
        if (interval[1] - interval[0]) / 2 < HALF_WIDTH or len(logs) == MOST_PAIRS:
            return 100 * math.expm1(interval[0]), 100 * math.expm1(interval[1])
