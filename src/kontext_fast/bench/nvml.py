"""Readings of the GPU's driver (NVML) while an edit runs, taken by a thread twice a second.

The thread sleeps between readings and reads through calls that release the interpreter lock, so the edit does not wait.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from types import ModuleType
from typing import Any, Self

from kontext_fast.records.schema import GpuReadings

INTERVAL_S = 0.5

_THROTTLE_REASONS = {
    0x0000000000000002: "applications clocks setting",
    0x0000000000000004: "power cap",
    0x0000000000000008: "hardware slowdown",
    0x0000000000000010: "sync boost",
    0x0000000000000020: "software thermal slowdown",
    0x0000000000000040: "hardware thermal slowdown",
    0x0000000000000080: "power brake",
    0x0000000000000100: "display clocks setting",
}
"""Bits of NVML's clocks event reasons. Bit 1, idle, is left out: it does not affect a measured time."""


class NvmlDevice:
    """One GPU as NVML reports it; every reading is None if this driver or card does not support it."""

    def __init__(self, nvml: ModuleType, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle

    @classmethod
    def of(cls, device: Any) -> NvmlDevice | None:
        """The card of a CUDA device; None for other devices and without NVML."""
        if device.type != "cuda":
            return None
        import torch

        return cls.find(f"GPU-{torch.cuda.get_device_properties(device).uuid}")

    @classmethod
    def find(cls, uuid: str) -> NvmlDevice | None:
        """The card with this uuid, since its index in torch may differ."""
        import pynvml

        try:
            pynvml.nvmlInit()
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
        except pynvml.NVMLError:
            return None

    def facts(self) -> dict[str, Any]:
        """What only the driver knows of the card, as a record's environment stores it."""
        limit_mw = self._read(self._nvml.nvmlDeviceGetEnforcedPowerLimit)
        return {
            "driver": self._read(lambda _handle: self._nvml.nvmlSystemGetDriverVersion()),
            "power_limit_w": None if limit_mw is None else limit_mw / 1000,
            "clock_sm_mhz": self.clock_sm_mhz(),
            "clock_sm_max_mhz": self._count(self._nvml.nvmlDeviceGetMaxClockInfo, self._nvml.NVML_CLOCK_SM),
            "clock_memory_mhz": self.clock_memory_mhz(),
            "temperature_c": self.temperature_c(),
        }

    def power_w(self) -> float | None:
        milliwatts = self._read(self._nvml.nvmlDeviceGetPowerUsage)
        return None if milliwatts is None else milliwatts / 1000

    def energy_j(self) -> float | None:
        """Counted since the driver was loaded."""
        millijoules = self._read(self._nvml.nvmlDeviceGetTotalEnergyConsumption)
        return None if millijoules is None else millijoules / 1000

    def clock_sm_mhz(self) -> int | None:
        return self._count(self._nvml.nvmlDeviceGetClockInfo, self._nvml.NVML_CLOCK_SM)

    def clock_memory_mhz(self) -> int | None:
        return self._count(self._nvml.nvmlDeviceGetClockInfo, self._nvml.NVML_CLOCK_MEM)

    def temperature_c(self) -> int | None:
        return self._count(self._nvml.nvmlDeviceGetTemperature, self._nvml.NVML_TEMPERATURE_GPU)

    def throttle_reasons(self) -> tuple[str, ...]:
        bits = self._read(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons) or 0
        return tuple(name for bit, name in _THROTTLE_REASONS.items() if bits & bit)

    def processes(self) -> dict[int, int | None] | None:
        """Bytes on the card by the id, in the driver's namespace, of each process that computes on it."""
        processes = self._read(self._nvml.nvmlDeviceGetComputeRunningProcesses)
        return None if processes is None else {process.pid: process.usedGpuMemory for process in processes}

    def _count(self, function: Callable[..., Any], *arguments: Any) -> int | None:
        value = self._read(function, *arguments)
        return None if value is None else int(value)

    def _read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None


@dataclass
class _Series:
    at_s: list[float] = field(default_factory=list)
    power_w: list[float | None] = field(default_factory=list)
    clock_sm_mhz: list[int | None] = field(default_factory=list)
    clock_memory_mhz: list[int | None] = field(default_factory=list)
    temperature_c: list[int | None] = field(default_factory=list)
    throttle_reasons: dict[str, None] = field(default_factory=dict)
    foreign_processes: list[int] = field(default_factory=list)
    own_bytes: list[int] = field(default_factory=list)


class GpuMonitor:
    """Reads a card during the `with` block: at its beginning, every `INTERVAL_S`, and at its end.

    Without a card, `readings` and `process_peak_bytes` are None.
    """

    def __init__(self, card: NvmlDevice | None) -> None:
        self._card = card
        self._series = _Series()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._energy_j: float | None = None

    def __enter__(self) -> Self:
        if self._card is not None:
            self._start = perf_counter()
            self._energy_at_start = self._card.energy_j()
            self._thread = threading.Thread(target=self._monitor, args=(self._card,), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._card is None or self._thread is None:
            return
        energy_j = self._card.energy_j()
        if energy_j is not None and self._energy_at_start is not None:
            self._energy_j = energy_j - self._energy_at_start
        self._ended.set()
        self._thread.join()

    @property
    def readings(self) -> GpuReadings | None:
        if self._card is None:
            return None
        series = self._series
        return GpuReadings(
            at_s=tuple(series.at_s),
            power_w=tuple(series.power_w),
            clock_sm_mhz=tuple(series.clock_sm_mhz),
            clock_memory_mhz=tuple(series.clock_memory_mhz),
            temperature_c=tuple(series.temperature_c),
            throttle_reasons=tuple(series.throttle_reasons),
            energy_j=self._energy_j,
            foreign_processes=max(series.foreign_processes, default=None),
        )

    @property
    def process_peak_bytes(self) -> int | None:
        """The maximum that this process held on the card at any reading, including what torch does not allocate."""
        return max(self._series.own_bytes, default=None)

    def _monitor(self, card: NvmlDevice) -> None:
        while True:
            self._read(card)
            if self._ended.wait(INTERVAL_S):
                self._read(card)
                return

    def _read(self, card: NvmlDevice) -> None:
        series = self._series
        series.at_s.append(perf_counter() - self._start)
        series.power_w.append(card.power_w())
        series.clock_sm_mhz.append(card.clock_sm_mhz())
        series.clock_memory_mhz.append(card.clock_memory_mhz())
        series.temperature_c.append(card.temperature_c())
        series.throttle_reasons.update(dict.fromkeys(card.throttle_reasons()))
        if (processes := card.processes()) is not None:
            own, foreign = _own_and_foreign(processes)
            series.foreign_processes.append(foreign)
            if own is not None:
                series.own_bytes.append(own)


def _own_and_foreign(processes: dict[int, int | None]) -> tuple[int | None, int]:
    """Bytes of this process and the number of other processes.

    In a container this process may have another id in the driver; it computes on the card, so one of them is this one.
    """
    if os.getpid() in processes:
        return processes[os.getpid()], len(processes) - 1
    own = next(iter(processes.values())) if len(processes) == 1 else None
    return own, max(0, len(processes) - 1)
