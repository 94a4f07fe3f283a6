"""PyTorch's own kernels by name.

Each is called itself. `torch.nn.attention.sdpa_kernel` would choose for all threads of the process: another call, which
encodes or decodes at that moment, would find no kernel that takes its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, ops
from torch.nn.functional import scaled_dot_product_attention

from kontext_fast.engine.attention.base import AttentionKernel

_WITHOUT_BIAS_OR_SUMS = (None, False)


def _any(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    attended = scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return attended.transpose(1, 2)


def _only(kernel: Callable[..., Any], options: tuple[Any, ...], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    attended: Tensor = kernel(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), *options)[0]
    return attended.transpose(1, 2)


NATIVE = AttentionKernel("native", _any, devices=("cpu",), preference=1)
"""Whatever PyTorch runs; a CPU gives little choice."""
CUDNN = AttentionKernel(
    "cudnn", partial(_only, ops.aten._scaled_dot_product_cudnn_attention, _WITHOUT_BIAS_OR_SUMS), preference=1
)
FLASH = AttentionKernel("flash", partial(_only, ops.aten._scaled_dot_product_flash_attention, ()))
EFFICIENT = AttentionKernel(
    "efficient", partial(_only, ops.aten._scaled_dot_product_efficient_attention, _WITHOUT_BIAS_OR_SUMS)
)
MATH = AttentionKernel("math", partial(_only, ops.aten._scaled_dot_product_attention_math, ()), devices=("cuda", "cpu"))
