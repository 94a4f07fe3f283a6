"""Attention over joint buffers by a kernel that is named, never found by trial."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor

from kontext_fast.engine.flash3 import flash3, flash3_fp8

AttentionKernel = Literal["default", "cudnn", "flash", "efficient", "math", "flash3", "flash3_fp8"]
"""`default` is cuDNN on CUDA and whatever PyTorch runs on a CPU; `flash3` is FlashAttention-3, from a package of its
own, and `flash3_fp8` the same in float8; the others are PyTorch's kernels by name."""

ATTENTION_KERNELS: tuple[str, ...] = get_args(AttentionKernel)


def resolve_kernel(kernel: AttentionKernel, device: str) -> str:
    """The kernel that `kernel` means on a device type: a name, or `native` where the choice is left to PyTorch."""
    if kernel != "default":
        return kernel
    return "cudnn" if device == "cuda" else "native"


def attention(kernel: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[B, rows, H * D] of `query` [B, rows, H, D] over `key` and `value` [B, S, H, D].

    `kernel` is what `resolve_kernel` gave. Raises RuntimeError if that kernel does not take these inputs.
    """
    if kernel == "flash3":
        return flash3(query, key, value).flatten(2)
    if kernel == "flash3_fp8":
        return flash3_fp8(query, key, value).flatten(2)
    with _only(kernel):
        attended = torch.nn.functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        )
    return attended.transpose(1, 2).flatten(2)


def _only(kernel: str) -> AbstractContextManager[None]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if kernel == "native":
        return nullcontext()
    backends = {
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    }
    return sdpa_kernel(backends[kernel])
