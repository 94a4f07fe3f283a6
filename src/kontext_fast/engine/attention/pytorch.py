"""PyTorch's own kernels by name."""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from kontext_fast.engine.attention.base import AttentionKernel


def _any(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    attended = scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return attended.transpose(1, 2)


def _only(backend: SDPBackend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return _any(query, key, value)


NATIVE = AttentionKernel("native", _any, devices=("cpu",), preference=1)
"""Whatever PyTorch runs; a CPU gives little choice."""
CUDNN = AttentionKernel("cudnn", partial(_only, SDPBackend.CUDNN_ATTENTION), preference=1)
FLASH = AttentionKernel("flash", partial(_only, SDPBackend.FLASH_ATTENTION))
EFFICIENT = AttentionKernel("efficient", partial(_only, SDPBackend.EFFICIENT_ATTENTION))
MATH = AttentionKernel("math", partial(_only, SDPBackend.MATH), devices=("cuda", "cpu"))
