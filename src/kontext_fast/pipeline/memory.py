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
        # The CPU allocator has no exception of its own.
        if "DefaultCPUAllocator" not in str(error):
            raise
        raise _out_of_memory(activity, "host") from error


def _out_of_memory(activity: str, memory: str) -> OutOfMemory:
    return OutOfMemory(
        f"The {memory} memory ran out while {activity}; ask for a smaller size or batch, "
        "free what other programs hold, or use the checkpoint tiny."
    )
