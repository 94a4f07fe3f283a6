"""Copies between host memory and a GPU through pinned memory: fast ones, and ones that the host does not wait for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode

_BUFFER_BYTES = 32 * 2**20

_MOST_UPLOADED = 16 * 2**20
"""Bytes. Positions, noise and pictures are smaller; weights that are offloaded would fill pinned memory."""


class HostMemory:
    """Copies tensors of one GPU. Its two buffers, 64 MiB of pinned memory, are freed with it."""

    def __init__(self) -> None:
        self._buffers = [torch.empty(_BUFFER_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._filled = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]

    def copy(self, tensor: Tensor) -> Tensor:
        """`tensor` in host memory, contiguous and bit-identical; waits for earlier work of its stream."""
        host = torch.empty(tensor.shape, dtype=tensor.dtype)
        source, target = (data.view(-1).view(torch.uint8) for data in (tensor.contiguous(), host))
        pieces = list(zip(torch.split(source, _BUFFER_BYTES), torch.split(target, _BUFFER_BYTES), strict=True))
        with torch.cuda.device(tensor.device):
            self._fill(0, pieces[0][0])
            for index, (_, waiting) in enumerate(pieces):
                if index + 1 < len(pieces):
                    self._fill(index + 1, pieces[index + 1][0])
                self._filled[index % 2].synchronize()
                waiting.copy_(self._buffers[index % 2][: len(waiting)])
        return host

    def _fill(self, index: int, piece: Tensor) -> None:
        """Start the copy of `piece` into its buffer, whose content was read before."""
        self._buffers[index % 2][: len(piece)].copy_(piece, non_blocking=True)
        self._filled[index % 2].record()


class Uploads(TorchFunctionMode):
    """While it is entered, `tensor.to(device)` does not wait until the device has done all work before it.

    It does so for tensors in pageable memory, whose numbers are copied to pinned memory first, converted as without.
    Pipelines bring positions, noise and times to the device between stages, each time waiting for the stage before.
    """

    def __init__(self, kind: str = "cuda", pinned: Callable[[Tensor], Tensor] = Tensor.pin_memory) -> None:
        """For devices of one `kind`, by what `pinned` makes of a tensor."""
        super().__init__()
        self._kind = kind
        self._pinned = pinned

    def __torch_function__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Whoever watches or records operations sees those of diffusers.
        if function is Tensor.to and _is_plain(args[0]) and _get_current_dispatch_mode() is None:
            target: Any = torch._C._nn._parse_to(*args[1:], **kwargs)
            device, dtype, _, memory_format = target
            if device is not None and device.type == self._kind and memory_format is None:
                return self._pinned(args[0].to(dtype or args[0].dtype)).to(device, non_blocking=True)
        return function(*args, **kwargs)

    def enter(self) -> None:
        """Enter it in this thread."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def leave(self) -> bool:
        """Leave it, if it is the one that was entered last in this thread; whether it was."""
        entered_last: bool = _get_current_function_mode() is self  # type: ignore[no-untyped-call]
        if entered_last:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        return entered_last


def _is_plain(tensor: Any) -> bool:
    in_host_memory = type(tensor) is Tensor and tensor.device.type == "cpu" and tensor.layout is torch.strided
    return in_host_memory and not tensor.requires_grad and tensor.nbytes <= _MOST_UPLOADED
