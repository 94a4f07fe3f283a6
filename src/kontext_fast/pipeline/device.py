"""The device and the precision of a checkpoint, and failed allocations as errors of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kontext_fast.errors import InvalidInput, OutOfMemory, Refused

if TYPE_CHECKING:
    import torch


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
