"""What the planner knows about the machine: plain facts, so that a test can describe any machine."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One device and the tools beside it."""

    device: str
    """Device type as torch names it: `cpu`, `cuda` or `mps`."""
    gpu: str | None = None
    """Name of the accelerator; None on a CPU."""
    capability: tuple[int, int] | None = None
    """CUDA compute capability; None elsewhere."""
    memory_bytes: int
    """Total memory of the device; on a CPU, of the host."""
    cxx: str | None
    """C++ compiler that torch.compile would call, or None."""
    cc: str | None
    """C compiler that Triton would call, or None."""
    triton: bool
    """Whether the package triton is installed."""
    torch: str
    """Version of torch."""
    platform: str
    """System and processor, e.g. `linux-x86_64`."""

    @classmethod
    def detect(cls, device: Any = None) -> Machine:
        """Facts of `device` (a torch device or its name), or of the best one here. Imports torch."""
        import torch

        chosen = torch.device(device) if device is not None else torch.device(_best_device())
        gpu: str | None = None
        capability: tuple[int, int] | None = None
        memory_bytes = _host_memory_bytes()
        if chosen.type == "cuda":
            properties = torch.cuda.get_device_properties(chosen)
            gpu, memory_bytes = properties.name, properties.total_memory
            capability = (properties.major, properties.minor)
        elif chosen.type == "mps":
            gpu = "Apple GPU"
        return cls(
            device=chosen.type,
            gpu=gpu,
            capability=capability,
            memory_bytes=memory_bytes,
            cxx=_cxx_compiler(),
            cc=_c_compiler(),
            triton=find_spec("triton") is not None,
            torch=str(torch.__version__),
            platform=f"{sys.platform}-{platform.machine().lower()}",
        )


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _host_memory_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _cxx_compiler() -> str | None:
    # The same choice as torch._inductor.config.cpp.cxx, without the seconds that importing inductor takes.
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return _found(os.environ.get("CXX", default))


def _c_compiler() -> str | None:
    if chosen := os.environ.get("CC"):
        return _found(chosen)
    return _found("gcc") or _found("clang") or _found("cc")


def _found(program: str) -> str | None:
    return program if shutil.which(program) else None
