"""Devices: which one a checkpoint runs on, in which precision, and allocations that fail there."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from kontext_fast.errors import InvalidInput, OutOfMemory, Refused

if TYPE_CHECKING:
    import torch


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


DTYPES = ("bfloat16", "float16", "float32")

_CPU_FLOAT32_LIMIT_BYTES = 4 * 2**30
"""Checkpoints up to this size on disk run in float32 on a CPU; a larger one may not fit when its size doubles."""


def choose_device(name: str | torch.device | None) -> torch.device:
    """The device `name`; None for the first GPU, or the CPU where there is none. Raises InvalidInput or Refused."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidInput(f"There is no device {str(name)!r}; use cpu, cuda or cuda:N.") from None
    if device.type not in ("cpu", "cuda"):
        raise InvalidInput(f"The device {device} is not supported; use cpu, cuda or cuda:N.")
    if device.type == "cuda":
        _check_gpu(device)
    return device


def _check_gpu(device: torch.device) -> None:
    import torch

    if not torch.cuda.is_available():
        raise Refused("torch sees no GPU here; use --device cpu, or install a CUDA build of torch and its driver.")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise Refused(f"There is no GPU {device.index}; use one of cuda:0 to cuda:{count - 1}.")


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device, weights_bytes: int) -> torch.dtype:
    """The precision `dtype`; None for bfloat16, or float32 for a small checkpoint on a CPU. Raises InvalidInput."""
    import torch

    if dtype is None:
        small = weights_bytes <= _CPU_FLOAT32_LIMIT_BYTES
        return torch.float32 if device.type == "cpu" and small else torch.bfloat16
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InvalidInput(f"The precision {name!r} is not supported; use {', '.join(DTYPES)}.")
    chosen: torch.dtype = getattr(torch, name)
    return chosen


@contextmanager
def memory_errors(activity: str) -> Iterator[None]:
    """Raise OutOfMemory for every allocation of torch that fails inside; `activity` reads like "loading tiny"."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise _out_of_memory(activity, "GPU") from error
    except MemoryError as error:
        raise _out_of_memory(activity, "host") from error
    except RuntimeError as error:
        if not is_out_of_host_memory(error):
            raise
        raise _out_of_memory(activity, "host") from error


def is_out_of_host_memory(error: BaseException) -> bool:
    """Whether torch's CPU allocator failed, which has no exception of its own, or a thread could not get a stack."""
    return isinstance(error, MemoryError) or any(
        sign in str(error) for sign in ("DefaultCPUAllocator", "can't start new thread")
    )


def _out_of_memory(activity: str, memory: str) -> OutOfMemory:
    return OutOfMemory(
        f"The {memory} memory ran out while {activity}; ask for a smaller size or batch, "
        "free what other programs hold, or use the checkpoint tiny."
    )
