"""The processes that compute one edit together: how they find each other, keep in step, and notice that one is gone.

They agree over the CPU before every evaluation, so that no GPU waits for a process that does something else: a
collective that not all of them enter would never end.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kontext_fast.errors import Cancelled, InvalidInput, KontextError

_LONGEST_WAIT = timedelta(minutes=10)
"""For a process that is alive and does not come. One that died is noticed at once."""

_GOES_ON, _STOPPED, _FAILED = range(3)

_SAMPLED = 64
"""Numbers of each input that are compared between processes."""

_FARTHEST = 0.1
"""Relative difference of these that may be rounding on GPUs of one model; other seeds or prompts are over 0.5 apart."""


@cache
def join(processes: int, device: torch.device) -> Ranks:
    """The processes of this program, which all call this; the process group is made where there is none.

    Raises InvalidInput where the program was started otherwise, or two processes have the same GPU.
    """
    if not dist.is_initialized():
        if "RANK" not in os.environ or os.environ.get("WORLD_SIZE") != str(processes):
            raise InvalidInput(_how_to_start(processes, os.environ.get("WORLD_SIZE", "1")))
        # Multicast over NVLink cannot be set up on some hosts, and nothing here would use it.
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
        if device.type == "cuda":
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", device_id=device)
        else:
            dist.init_process_group("gloo")
    if dist.get_world_size() != processes:
        raise InvalidInput(_how_to_start(processes, dist.get_world_size()))
    return Ranks(device)


def _how_to_start(processes: int, started: int | str) -> str:
    return (
        f"gpus={processes} is one edit by {processes} processes, and this program runs as {started}; start it with "
        f"torchrun --nproc-per-node {processes} PROGRAM, or use kontext edit --gpus {processes}."
    )


class FailedElsewhere(KontextError):
    """Another process failed or ended, which has the reason."""


_FAILED_ELSEWHERE = "Another process of this edit failed; see what it says, then start all again."


class Ranks:
    """All processes of this program, each with its rank."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), device
        self._control: Any = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)
        self._together = self._in_step = self._broken = False
        if device.type == "cuda" and len(set(self.of_all(str(device)))) < self.size:
            raise InvalidInput(
                f"Several processes of this program run on {device}; give each a GPU of its own, such as "
                "torch.device('cuda', int(os.environ['LOCAL_RANK']))."
            )

    def begin(self) -> None:
        """Begin a call, which all processes do; it ends in each of them by `agree(..., last=True)` or by `leave`."""
        self._together, self._in_step = True, False

    def agree(self, doing: str, *, last: bool = False) -> None:
        """Wait until all processes are here, about to do the same.

        Raises InvalidInput where one does something else, Cancelled where one has left its call, and KontextError where
        one has failed or died.
        """
        self._together = False
        if self._broken:
            raise FailedElsewhere("A process of this edit failed in a step before; start all of them again.")
        states = self._told(_GOES_ON, zlib.crc32(doing.encode()))
        self._broken = any(state == _FAILED for state, _ in states)
        if self._broken:
            raise FailedElsewhere(_FAILED_ELSEWHERE)
        if any(state == _STOPPED for state, _ in states):
            raise Cancelled("Another process of this program stopped this edit; run it again in all of them.")
        if len({about for _, about in states}) > 1:
            raise InvalidInput(
                "The processes of this program run different edits; give all of them the same calls, with the same "
                "sizes and steps."
            )
        self._together = not last

    def leave(self) -> None:
        """Tell the others, which are at `agree` or will be, that this process has left a call that is not ended."""
        if not self._together:
            return
        self._together, self._broken = False, self._broken or self._in_step
        with suppress(KontextError):
            self._told(_FAILED if self._broken else _STOPPED, 0)

    def everywhere(self, holds: bool) -> bool:
        """Whether `holds` is true in all processes, which ask this in the same step. Raises KontextError as `agree`."""
        states = self._told(_GOES_ON, int(holds))
        self._broken = any(state != _GOES_ON for state, _ in states)
        if self._broken:
            raise FailedElsewhere(_FAILED_ELSEWHERE)
        return all(held for _, held in states)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around the collectives of a step. Raises KontextError where another process dies in it."""
        self._in_step = True
        with _deaths_named():
            yield
        self._in_step = False

    def from_first(self, value: Any) -> Any:
        """`value` of the process of rank 0."""
        values = [value]
        with _deaths_named():
            dist.broadcast_object_list(values, src=0, group=self._control)
        return values[0]

    def of_all(self, value: Any) -> list[Any]:
        """`value` of every process, by rank."""
        values: list[Any] = [None] * self.size
        with _deaths_named():
            dist.all_gather_object(values, value, group=self._control)
        return values

    def sampled(self, tensors: Sequence[Tensor]) -> Tensor:
        """[processes, tensors, n] some numbers of `tensors`, for `require_alike`; shapes are the same everywhere."""
        own = torch.cat([_some_of(tensor) for tensor in tensors])
        everywhere = own.new_empty(self.size * len(own))
        dist.all_gather_into_tensor(everywhere, own)
        return everywhere.view(self.size, len(tensors), _SAMPLED)

    def _told(self, *of_this: int) -> list[list[int]]:
        """What every process says of itself, by rank."""
        own = torch.tensor(of_this)
        everywhere = own.new_empty(self.size * len(own))
        with _deaths_named():
            dist.all_gather_into_tensor(everywhere, own, group=self._control)
        told: list[list[int]] = everywhere.view(self.size, -1).tolist()
        return told


def require_alike(sampled: Tensor) -> None:
    """Raise InvalidInput where the processes were given other inputs, by what `Ranks.sampled` gave."""
    distances = (sampled - sampled[0]).norm(dim=-1) / sampled[0].norm(dim=-1)
    if bool((distances > _FARTHEST).any()):
        raise InvalidInput(
            "The processes of this program were given different images, prompts or seeds, so the image is wrong; give "
            "all of them the same, generators included."
        )


def _some_of(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    numbers = flat[:: max(1, len(flat) // _SAMPLED)][:_SAMPLED].float()
    return torch.nn.functional.pad(numbers, (0, _SAMPLED - len(numbers)))


@contextmanager
def _deaths_named() -> Iterator[None]:
    """Raise KontextError where a collective fails, as it does when a process has ended."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _SIGNS_OF_A_DEATH):
            raise
        raise FailedElsewhere("Another process of this edit has ended; see what it says, then start all.") from error


_SIGNS_OF_A_DEATH = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe")
"""In the errors of torch.distributed, which have no class of their own for it."""
