"""Attention over joint buffers by a kernel that is named, never found by trial."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import Tensor


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


_INTERFACES = ("fa3_fwd_interface", "flash_attn_interface")
"""Of the package fa3-fwd, whose wheels hold the forward pass only; and of a build from the authors' source."""


def flash3_interface() -> str | None:
    """The module that is installed, the first of those known; None if there is none."""
    return next((name for name in _INTERFACES if find_spec(name) is not None), None)


def flash3_refusal(kernel: str, capability: tuple[int, int] | None) -> str | None:
    """Why a GPU of that compute capability cannot run `kernel`, as one sentence that names the remedy, or None."""
    if capability is not None and capability[0] != 9:
        return (
            f"the attention kernel {kernel} runs on Hopper GPUs (compute capability 9.0), this one has "
            f"{capability[0]}.{capability[1]}; use attention=default"
        )
    if flash3_interface() is None:
        return (
            f"the attention kernel {kernel} needs FlashAttention-3; run `pip install fa3-fwd` or use attention=default"
        )
    return None


def flash3(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[B, rows, H, D] of `query` [B, rows, H, D] over `key` and `value` [B, S, H, D], bfloat16 on one GPU."""
    return _flash3_attended(query, key, value)


def flash3_fp8(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same with all three rounded to e4m3, one scale per sample and head, and the weights of values, too.

    The scales are those of the inputs at hand. Sums are float32, the result is bfloat16.
    """
    from kontext_fast.engine.kernels.quantize_heads import quantize_heads

    parts = {name: quantize_heads(part) for name, part in (("q", query), ("k", key), ("v", value))}
    scales = {f"{name}_descale": part.scale[:, 0, :, 0] for name, part in parts.items()}
    return _flash3_attended(*(part.values for part in parts.values()), **scales)


def _flash3_attended(*parts: Tensor, **scales: Tensor) -> Tensor:
    attended = _flash3_function()(*parts, **scales)
    # Some versions also give the log-sum-exp.
    output: Tensor = attended[0] if isinstance(attended, tuple) else attended
    return output


@cache
def _flash3_function() -> Any:
    name = flash3_interface()
    if name is None:
        raise ModuleNotFoundError("FlashAttention-3 is not installed")
    return importlib.import_module(name).flash_attn_func
