"""One place where running out of memory becomes an error that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kontext_fast.errors import OutOfMemory


@contextmanager
def memory_errors(activity: str) -> Iterator[None]:
    """Turn every failed allocation of torch inside into OutOfMemory; `activity` reads like "loading tiny"."""
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
    """Whether torch's CPU allocator failed, which has no exception of its own, or a thread had no room for a stack."""
    return isinstance(error, MemoryError) or any(
        sign in str(error) for sign in ("DefaultCPUAllocator", "can't start new thread")
    )


def _out_of_memory(activity: str, memory: str) -> OutOfMemory:
    return OutOfMemory(
        f"The {memory} memory ran out while {activity}; ask for a smaller size or batch, "
        "free what other programs hold, or use the checkpoint tiny."
    )
