"""The driver's answers, from a stand-in for the one module that talks to it; everything behind it is real."""

from __future__ import annotations

import os
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kontext_fast.bench import nvml as gpu_readings
from kontext_fast.bench.nvml import GpuMonitor, NvmlDevice


class NVMLError(Exception):
    pass


class FakeNvml(ModuleType):
    """One card whose state the test sets; what is in `silent` it does not tell."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.uuid = "GPU-0000"
        self.silent: set[str] = set()
        self.millijoules = 5_000_000
        self.throttle = 0x1
        self.pids = {os.getpid(): 7 * 2**30}
        self.asked = 0

    def _say(self, name: str, value: Any) -> Any:
        self.asked += 1
        if name in self.silent:
            raise NVMLError(name)
        return value

    def nvmlInit(self) -> None:
        self._say("init", None)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != self.uuid:
            raise NVMLError("not found")
        return uuid

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return int(self._say("power", 612_500))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        self.millijoules += 250_000
        return int(self._say("energy", self.millijoules))

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return int(self._say("clocks", {1: 1980, 2: 3201}[kind]))

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return int(self._say("temperature", 61))

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return int(self._say("throttle", self.throttle))

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        found = [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.pids.items()]
        return list(self._say("processes", found))


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(gpu_readings, "INTERVAL_S", 0.01)
    return fake


def watched(seconds: float = 0.1) -> GpuMonitor:
    card = NvmlDevice.find("GPU-0000")
    assert card is not None
    with GpuMonitor(card) as watch:
        time.sleep(seconds)
    return watch


def test_the_card_is_read_during_the_call_and_not_only_around_it(nvml: FakeNvml) -> None:
    readings = watched().readings
    assert readings is not None
    assert len(readings.at_s) > 4
    assert sum(0.01 < at < 0.09 for at in readings.at_s) > 2
    assert list(readings.at_s) == sorted(readings.at_s)
    for series, value in (
        (readings.power_w, 612.5),
        (readings.clock_sm_mhz, 1980),
        (readings.clock_memory_mhz, 3201),
        (readings.temperature_c, 61),
    ):
        assert series == (value,) * len(readings.at_s)
    assert readings.energy_j == 250.0
    assert readings.foreign_processes == 0
    assert readings.throttle_reasons == ()


def test_reading_ends_with_the_call(nvml: FakeNvml) -> None:
    watched()
    asked = nvml.asked
    time.sleep(0.05)
    assert nvml.asked == asked


def test_it_ends_with_a_call_that_fails_too(nvml: FakeNvml) -> None:
    with pytest.raises(RuntimeError), GpuMonitor(NvmlDevice.find("GPU-0000")):
        raise RuntimeError
    asked = nvml.asked
    time.sleep(0.05)
    assert nvml.asked == asked


def test_a_throttled_card_is_told_and_an_idle_one_is_not_throttled(nvml: FakeNvml) -> None:
    nvml.throttle = 0x1 | 0x4 | 0x40
    readings = watched(0.02).readings
    assert readings is not None
    assert readings.throttle_reasons == ("power cap", "hardware thermal slowdown")


@pytest.mark.parametrize(
    ("pids", "foreign", "own"),
    [
        ({"own": 5}, 0, 5),
        ({"own": 5, 1: 9}, 1, 5),
        ({4711: 6}, 0, 6),
        ({4711: 6, 4712: 9}, 1, None),
        ({}, 0, None),
    ],
)
def test_other_processes_on_the_card_are_counted_whatever_ids_a_container_shows(
    nvml: FakeNvml, pids: dict[Any, int], foreign: int, own: int | None
) -> None:
    nvml.pids = {os.getpid() if pid == "own" else pid: used for pid, used in pids.items()}
    watch = watched(0.02)
    assert watch.readings is not None
    assert (watch.readings.foreign_processes, watch.process_peak_bytes) == (foreign, own)


def test_a_foreign_process_that_came_and_went_was_seen(nvml: FakeNvml) -> None:
    with GpuMonitor(NvmlDevice.find("GPU-0000")) as watch:
        time.sleep(0.03)
        nvml.pids[4711] = 2**30
        time.sleep(0.05)
        del nvml.pids[4711]
        time.sleep(0.03)
    assert watch.readings is not None
    assert watch.readings.foreign_processes == 1


def test_what_a_driver_does_not_tell_is_none(nvml: FakeNvml) -> None:
    nvml.silent = {"power", "energy", "clocks", "temperature", "throttle", "processes"}
    readings = watched(0.02).readings
    assert readings is not None
    assert set(readings.power_w) | set(readings.clock_sm_mhz) | set(readings.temperature_c) == {None}
    assert (readings.energy_j, readings.foreign_processes, readings.throttle_reasons) == (None, None, ())


def test_without_a_card_there_are_no_readings(nvml: FakeNvml) -> None:
    import torch

    assert NvmlDevice.of(torch.device("cpu")) is None
    assert NvmlDevice.find("GPU-9999") is None
    nvml.silent = {"init"}
    assert NvmlDevice.find("GPU-0000") is None
    with GpuMonitor(None) as watch:
        pass
    assert (watch.readings, watch.process_peak_bytes) == (None, None)


def test_the_stand_in_has_the_names_of_the_real_module() -> None:
    import pynvml

    for name in vars(FakeNvml):
        if name.lower().startswith("nvml"):
            assert hasattr(pynvml, name), name
