"""Readings of a GPU through a fake of pynvml, the only module that calls the driver."""

from __future__ import annotations

import os
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kontext_fast.bench import nvml as nvml_module
from kontext_fast.bench.nvml import GpuMonitor, NvmlDevice


class NVMLError(Exception):
    pass


class FakeNvml(ModuleType):
    """One card whose state the test sets; reading one of `unsupported` fails."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.uuid = "GPU-0000"
        self.unsupported: set[str] = set()
        self.millijoules = 5_000_000
        self.throttle = 0x1
        self.pids = {os.getpid(): 7 * 2**30}
        self.calls = 0

    def _reading(self, name: str, value: Any) -> Any:
        self.calls += 1
        if name in self.unsupported:
            raise NVMLError(name)
        return value

    def nvmlInit(self) -> None:
        self._reading("init", None)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != self.uuid:
            raise NVMLError("not found")
        return uuid

    def nvmlSystemGetDriverVersion(self) -> str:
        return str(self._reading("driver", "580.95.05"))

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        return int(self._reading("power", 700_000))

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:
        return int(self._reading("clocks", {1: 1980, 2: 3201}[kind]))

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return int(self._reading("power", 612_500))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        self.millijoules += 250_000
        return int(self._reading("energy", self.millijoules))

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return int(self._reading("clocks", {1: 1980, 2: 3201}[kind]))

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return int(self._reading("temperature", 61))

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return int(self._reading("throttle", self.throttle))

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        processes = [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.pids.items()]
        return list(self._reading("processes", processes))


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(nvml_module, "INTERVAL_S", 0.01)
    return fake


def monitored(seconds: float = 0.1) -> GpuMonitor:
    card = NvmlDevice.find("GPU-0000")
    assert card is not None
    with GpuMonitor(card) as monitor:
        time.sleep(seconds)
    return monitor


def test_card_is_read_during_the_call(nvml: FakeNvml) -> None:
    readings = monitored().readings
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


def test_monitor_thread_ends_with_the_call(nvml: FakeNvml) -> None:
    monitored()
    calls = nvml.calls
    time.sleep(0.05)
    assert nvml.calls == calls


def test_monitor_thread_ends_with_a_failed_call(nvml: FakeNvml) -> None:
    with pytest.raises(RuntimeError), GpuMonitor(NvmlDevice.find("GPU-0000")):
        raise RuntimeError
    calls = nvml.calls
    time.sleep(0.05)
    assert nvml.calls == calls


def test_throttle_reasons_leave_out_idle(nvml: FakeNvml) -> None:
    nvml.throttle = 0x1 | 0x4 | 0x40
    readings = monitored(0.02).readings
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
def test_foreign_processes_are_counted_inside_containers(
    nvml: FakeNvml, pids: dict[Any, int], foreign: int, own: int | None
) -> None:
    nvml.pids = {os.getpid() if pid == "own" else pid: used for pid, used in pids.items()}
    monitor = monitored(0.02)
    assert monitor.readings is not None
    assert (monitor.readings.foreign_processes, monitor.process_peak_bytes) == (foreign, own)


def test_short_lived_foreign_process_is_counted(nvml: FakeNvml) -> None:
    with GpuMonitor(NvmlDevice.find("GPU-0000")) as monitor:
        time.sleep(0.03)
        nvml.pids[4711] = 2**30
        time.sleep(0.05)
        del nvml.pids[4711]
        time.sleep(0.03)
    assert monitor.readings is not None
    assert monitor.readings.foreign_processes == 1


def test_unsupported_readings_are_none(nvml: FakeNvml) -> None:
    nvml.unsupported = {"power", "energy", "clocks", "temperature", "throttle", "processes"}
    readings = monitored(0.02).readings
    assert readings is not None
    assert set(readings.power_w) | set(readings.clock_sm_mhz) | set(readings.temperature_c) == {None}
    assert (readings.energy_j, readings.foreign_processes, readings.throttle_reasons) == (None, None, ())


def test_facts_of_a_card_are_those_of_its_driver(nvml: FakeNvml) -> None:
    card = NvmlDevice.find("GPU-0000")
    assert card is not None
    assert card.facts() == {
        **{"driver": "580.95.05", "power_limit_w": 700, "temperature_c": 61},
        **{"clock_sm_mhz": 1980, "clock_sm_max_mhz": 1980, "clock_memory_mhz": 3201},
    }
    nvml.unsupported = {"power", "clocks"}
    missing = {name for name, value in card.facts().items() if value is None}
    assert missing == {"power_limit_w", "clock_sm_mhz", "clock_sm_max_mhz", "clock_memory_mhz"}


def test_without_a_card_there_are_no_readings(nvml: FakeNvml) -> None:
    import torch

    assert NvmlDevice.of(torch.device("cpu")) is None
    assert NvmlDevice.find("GPU-9999") is None
    nvml.unsupported = {"init"}
    assert NvmlDevice.find("GPU-0000") is None
    with GpuMonitor(None) as monitor:
        pass
    assert (monitor.readings, monitor.process_peak_bytes) == (None, None)


def test_fake_nvml_has_the_names_of_the_real_module() -> None:
    import pynvml

    for name in vars(FakeNvml):
        if name.lower().startswith("nvml"):
            assert hasattr(pynvml, name), name
