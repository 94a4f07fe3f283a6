"""Detects changed weights of modules, so that results of the old ones are not reused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_MATRICES, _NUMBERS = 16, 64
"""Looked at per module, and of each. A LoRA that is merged changes nearly every number of most matrices."""


class WeightFingerprint:
    """Remembers the modules of the last call and a fingerprint of their weights.

    Replaced modules and parameters, adapters, conversions and writes that torch counts are always noticed; writes
    behind its back (through `.data`, as merging a LoRA does) by looking at a few numbers of a few matrices. Moving a
    module to another device and back, as offloading does, is no change.
    """

    def __init__(self) -> None:
        self._known: Any = None
        self._numbers: Any = None

    def changed(self, modules: Sequence[Any]) -> bool:
        """Whether `modules` (torch modules, or None) differ from the last call's; True the first time."""
        import torch

        known = [(id(module), _layout(module)) for module in modules]
        numbers = [_numbers(module) for module in modules if module is not None]
        same = known == self._known and all(map(torch.equal, numbers, self._numbers))
        self._known, self._numbers = known, numbers
        return not same


def _layout(module: Any) -> list[tuple[Any, ...]]:
    if module is None:
        return []
    return [(name, id(parameter), parameter._version, parameter.dtype) for name, parameter in module.named_parameters()]


def _numbers(module: Any) -> Any:
    """[n] bits of some of the weights."""
    import torch

    matrices = [matrix.data for matrix in module.parameters() if matrix.dim() > 1]
    chosen = matrices[:: max(1, -(-len(matrices) // _MATRICES))]
    # An odd stride visits many rows and columns.
    flat = torch.cat([matrix.reshape(-1)[:: max(1, matrix.numel() // _NUMBERS) | 1] for matrix in chosen])
    return flat.view(torch.uint8).cpu()
