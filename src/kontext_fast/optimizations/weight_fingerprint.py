"""Notices that the weights of modules changed, so that what was computed with the old ones is not used again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_MATRICES, _NUMBERS = 16, 64
"""Looked at per module, and of each. A LoRA that is merged changes nearly every number of most matrices."""


class WeightFingerprint:
    """Remembers which modules were looked at last, and how their weights were then.

    Replaced modules and parameters, adapters, conversions and writes that torch counts are always noticed; writes
    behind its back (through `.data`, as merging a LoRA does) by looking at a few numbers of a few matrices. Moving a
    module to another device and back, as offloading does, is no change.
    """

    def __init__(self) -> None:
        self._known: Any = None
        self._numbers: Any = None

    def changed(self, modules: Sequence[Any]) -> bool:
        """Whether `modules` (torch modules, or None) are other than at the call before; True the first time."""
        import torch

        known = [(id(module), _layout(module)) for module in modules]
        numbers = [_numbers(module) for module in modules if module is not None]
        same = known == self._known and all(
            torch.equal(now, before) for now, before in zip(numbers, self._numbers, strict=True)
        )
        self._known, self._numbers = known, numbers
        return not same


def _layout(module: Any) -> list[tuple[Any, ...]]:
    if module is None:
        return []
    return [(name, id(one), one._version, one.dtype) for name, one in module.named_parameters()]


def _numbers(module: Any) -> Any:
    """[n] bits of some of the weights."""
    import torch

    matrices = [one.data for one in module.parameters() if one.dim() > 1]
    chosen = matrices[:: max(1, -(-len(matrices) // _MATRICES))]
    # An odd stride visits many rows and columns.
    flat = torch.cat([one.reshape(-1)[:: max(1, one.numel() // _NUMBERS) | 1] for one in chosen])
    return flat.view(torch.uint8).cpu()
