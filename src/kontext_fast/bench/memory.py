"""Peak memory of one call: the allocator's counters on a GPU, the resident set on the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kontext_fast.records.schema import Memory

_PROCESS = Path("/proc/self")


class PeakMemory:
    """Forgets earlier peaks when made, so make it right before the call, on a synchronized device."""

    def __init__(self, device: Any) -> None:
        import torch

        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._host_resets = _reset_host_peak()

    def read(self, *, device_process_peak_bytes: int | None) -> Memory:
        """Peaks in bytes since this object was made; None for what this machine does not count per call.

        The driver's count is passed in: it has no peak of its own, so it has to be watched.
        """
        import torch

        on_gpu = self._device.type == "cuda"
        return Memory(
            allocated_peak_bytes=torch.cuda.max_memory_allocated(self._device) if on_gpu else None,
            reserved_peak_bytes=torch.cuda.max_memory_reserved(self._device) if on_gpu else None,
            device_process_peak_bytes=device_process_peak_bytes,
            host_rss_peak_bytes=_host_peak() if self._host_resets else None,
        )


def _reset_host_peak() -> bool:
    """Only Linux can; elsewhere the peak is of the whole process, which is not what is asked."""
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _host_peak() -> int | None:
    for line in (_PROCESS / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
