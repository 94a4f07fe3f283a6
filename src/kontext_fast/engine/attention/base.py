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
    run: Callable[..., Tensor]
    """[B, rows, H, D] of query [B, rows, H, D] over key and value [B, S, H, D], all of them bfloat16 on a GPU; of a
    `quantized` kernel the scales follow, [3, B] float32.

    Raises RuntimeError if it does not take these inputs."""
    run_into: Callable[..., None] | None = None
    """The same, written to its first argument, [B, rows, H, D] with any strides but a contiguous last dimension."""
    devices: tuple[str, ...] = ("cuda",)
    """Device types that it runs on."""
    refusal: Callable[[Capability | None], str | None] | None = None
    """Why a GPU of that compute capability (None: not known) cannot run it, as one sentence that names the remedy, or
    None."""
    effect: Effect = "numeric"
    """lossy: it approximates; numeric: it rounds otherwise than PyTorch's own, no more."""
    preference: int = 0
    """Among kernels that can run, `attention=auto` takes the one with the largest; it never takes one with 0, nor a
    lossy one."""
    quantized: bool = False
    """Whether query, key and value are e4m3, with one scale for each of them and sample; the result is bfloat16.
    Only fused kernels write them so."""
