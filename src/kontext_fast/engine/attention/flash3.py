"""FlashAttention-3, from a package of its own, in bfloat16 and in float8."""

from __future__ import annotations

import importlib
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from kontext_fast.engine.attention.base import AttentionKernel, Capability

_INTERFACES = ("fa3_fwd_interface", "flash_attn_interface")
"""Of the package fa3-fwd, whose wheels hold the forward pass only; and of a build from the authors' source."""


def installed_interface() -> str | None:
    """The module that is installed, the first of those known; None if there is none."""
    return next((name for name in _INTERFACES if find_spec(name) is not None), None)


def _refusal(name: str, capability: Capability | None) -> str | None:
    if capability is not None and capability[0] != 9:
        return (
            f"the attention kernel {name} runs on Hopper GPUs (compute capability 9.0), this one has "
            f"{capability[0]}.{capability[1]}; use attention=auto"
        )
    if installed_interface() is None:
        return f"the attention kernel {name} needs FlashAttention-3; run `pip install fa3-fwd` or use attention=auto"
    return None


def _bfloat16(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return _attended(query, key, value)


def _bfloat16_into(out: Tensor, query: Tensor, key: Tensor, value: Tensor) -> None:
    if installed_interface() != _INTERFACES[0]:
        out.copy_(_attended(query, key, value))
        return
    # The operation under the function, which has no such argument; with the function's defaults.
    operation = importlib.import_module(_INTERFACES[0]).fa3_fwd_cuda.fwd
    operation(query, key, value, out=out, softmax_scale=query.shape[-1] ** -0.5, num_splits=1)


def _float8(query: Tensor, key: Tensor, value: Tensor, scales: Tensor) -> Tensor:
    """The weights of values are rounded to e4m3, too; sums are float32."""
    per_head = scales[..., None].expand(*scales.shape, query.shape[2])
    return _attended(query, key, value, q_descale=per_head[0], k_descale=per_head[1], v_descale=per_head[2])


def _attended(query: Tensor, key: Tensor, value: Tensor, **scales: Tensor) -> Tensor:
    attended = _function()(query, key, value, **scales)
    # Some versions also give the log-sum-exp.
    output: Tensor = attended[0] if isinstance(attended, tuple) else attended
    return output


@cache
def _function() -> Any:
    name = installed_interface()
    if name is None:
        raise ModuleNotFoundError("FlashAttention-3 is not installed")
    return importlib.import_module(name).flash_attn_func


FLASH3 = AttentionKernel("flash3", _bfloat16, _bfloat16_into, refusal=partial(_refusal, "flash3"), preference=2)
"""A tenth faster than cuDNN on an H100, with the same error."""
FLASH3_FP8 = AttentionKernel(
    "flash3_fp8",
    _float8,
    refusal=partial(_refusal, "flash3_fp8"),
    effect="lossy",
    quantized=True,
)
