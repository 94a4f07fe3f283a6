"""What a kernel of attention says about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from kontext_fast.records.schema import Effect

Capability = tuple[int, int]
"""Of a CUDA device: major, minor."""


@dataclass(frozen=True)
class AttentionKernel:
    """A public value of this type in a module of this package is a kernel that `engine(attention=NAME)` can name."""

    name: str
    run: Callable[[Tensor, Tensor, Tensor], Tensor]
    """[B, rows, H, D] of query [B, rows, H, D] over key and value [B, S, H, D], all of them bfloat16 on a GPU.

    Raises RuntimeError if it does not take these inputs."""
    devices: tuple[str, ...] = ("cuda",)
    """Device types that it runs on."""
    refusal: Callable[[Capability | None], str | None] | None = None
    """Why a GPU of that compute capability (None: not known) cannot run it, as one sentence that names the remedy, or
    None."""
    effect: Effect = "numeric"
    """lossy: it approximates; numeric: it rounds otherwise than PyTorch's own, no more."""
    launches: tuple[str, ...] = ()
    """Names of the kernels of `engine.kernels` that it launches, so that it needs what they need."""
