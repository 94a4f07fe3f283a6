"""The parameters that an engine was made from: what became of them, whether they are still the same, and the way back.

An engine reads memory that a transformer's parameters also look into, or numbers computed from them once. Whatever
changes the transformer afterwards (moving, converting, a LoRA) would leave the two apart, so it is looked for before
every request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from kontext_fast.engine.host_memory import HostMemory
from kontext_fast.engine.plain import require_no_adapters
from kontext_fast.errors import InvalidInput

_SAMPLES = 64
"""Numbers looked at per quantized matrix; whatever rewrites a matrix rewrites nearly all of it."""

_REPAIR = "revert the acceleration, change the pipeline, then accelerate again"


class Sources:
    """The parameters of one transformer; `undo` gives each its own memory on its own device again, bit for bit."""

    def __init__(self, transformer: Any, undo: ExitStack, device: torch.device | None = None) -> None:
        """`device`: where the engine reads them; None: where they are."""
        self._undo = undo
        here: torch.device = transformer.x_embedder.weight.device
        self._foreign = device is not None and device != here
        self.device: torch.device = here if device is None else device
        self._parameters: dict[str, Parameter] = dict(transformer.named_parameters())
        self._addresses: dict[str, int] | None = None
        self._replaced: list[Parameter] = []
        self._sample: Tensor | None = None
        self._host_memory: HostMemory | None = None

    @property
    def host_bytes(self) -> int:
        """Host memory in which replaced parameters of a GPU wait."""
        return sum(one.data.nbytes for one in self._replaced if one.device != self.device)

    def fuse(self, parameters: Sequence[Parameter]) -> Tensor:
        """The parameters one below the other, on the device of the engine; each becomes a view into the result, so
        nothing is held twice there. What came from host memory waits in it."""
        if len(parameters) == 1 and not self._foreign:
            return parameters[0].data
        whole = torch.cat([parameter.data.to(self.device) for parameter in parameters])
        views = torch.split_with_sizes(whole, [len(one) for one in parameters])
        for parameter, view in zip(parameters, views, strict=True):
            if self._foreign:
                self._undo.callback(_set, parameter, parameter.data)
            else:
                self._undo.callback(_own_memory, parameter)
            parameter.data = view
        return whole

    def replaced(self, parameter: Parameter) -> None:
        """Note that numbers computed from `parameter` are used instead; frees its memory on a GPU."""
        self._replaced.append(parameter)
        if parameter.device.type != "cpu":
            self._host_memory = self._host_memory or HostMemory()
            self._undo.callback(_move, parameter, parameter.device)
            parameter.data = self._host_memory.copy(parameter.data)

    def seal(self) -> None:
        """Remember how the parameters are now; call once all are taken."""
        self._host_memory = None
        self._addresses = {name: one.data_ptr() for name, one in self._parameters.items()}
        self._sample = self._sampled()

    def check(self, transformer: Any) -> None:
        """Raise InvalidInput if `transformer` is no longer as it was at `seal`."""
        require_no_adapters(transformer)
        now = dict(transformer.named_parameters())
        addresses = {name: one.data_ptr() for name, one in now.items()}
        if addresses != self._addresses or any(now[name] is not one for name, one in self._parameters.items()):
            raise InvalidInput(f"The transformer was moved, converted or replaced under the engine; {_REPAIR}.")
        sample = self._sampled()
        if sample is not None and self._sample is not None and not torch.equal(sample, self._sample):
            raise InvalidInput(f"The transformer's weights changed after they were quantized; {_REPAIR}.")

    def content_hash(self) -> str:
        """Sha256 of the numbers that were quantized: of names, shapes, dtypes and bits."""
        names = {id(one): name for name, one in self._parameters.items()}
        ordered = sorted((names[id(one)], one) for one in self._replaced)
        with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock, and there are gigabytes of it
            digests = list(pool.map(lambda pair: _digest(*pair), ordered))
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def _sampled(self) -> Tensor | None:
        """[n] a few numbers of every replaced parameter, or None where nothing was replaced."""
        if not self._replaced:
            return None
        flat = [one.data.view(-1) for one in self._replaced]
        # An odd stride visits many rows and columns of a matrix.
        samples = torch.cat([one[:: max(1, len(one) // _SAMPLES) | 1] for one in flat])
        return samples.view(
            torch.int16 if samples.dtype == torch.bfloat16 else torch.int32
        )  # bits: a NaN equals itself


def _set(parameter: Parameter, data: Tensor) -> None:
    parameter.data = data


def _own_memory(parameter: Parameter) -> None:
    parameter.data = parameter.data.clone()


def _move(parameter: Parameter, device: torch.device) -> None:
    parameter.data = parameter.data.to(device)


def _digest(name: str, parameter: Parameter) -> str:
    bits = parameter.data.detach().cpu().contiguous().view(torch.uint8).numpy().data
    return f"{name} {tuple(parameter.shape)} {parameter.dtype} {hashlib.sha256(bits).hexdigest()}"
