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
            f"{capability[0]}.{capability[1]}; use attention=default"
        )
    if installed_interface() is None:
        return f"the attention kernel {name} needs FlashAttention-3; run `pip install fa3-fwd` or use attention=default"
    return None


def _bfloat16(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return _attended(query, key, value)


def _float8(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """All three rounded to e4m3, one scale per sample and head, and the weights of values, too.

    The scales are those of the inputs at hand. Sums are float32, the result is bfloat16.
    """
    from kontext_fast.engine.kernels.quantize_heads import quantize_heads

    parts = {name: quantize_heads(part) for name, part in (("q", query), ("k", key), ("v", value))}
    scales = {f"{name}_descale": part.scale[:, 0, :, 0] for name, part in parts.items()}
    return _attended(*(part.values for part in parts.values()), **scales)


def _attended(*parts: Tensor, **scales: Tensor) -> Tensor:
    attended = _function()(*parts, **scales)
    # Some versions also give the log-sum-exp.
    output: Tensor = attended[0] if isinstance(attended, tuple) else attended
    return output


@cache
def _function() -> Any:
    name = installed_interface()
    if name is None:
        raise ModuleNotFoundError("FlashAttention-3 is not installed")
    return importlib.import_module(name).flash_attn_func


FLASH3 = AttentionKernel("flash3", _bfloat16, refusal=partial(_refusal, "flash3"))
FLASH3_FP8 = AttentionKernel(
    "flash3_fp8",
    _float8,
    refusal=partial(_refusal, "flash3_fp8"),
    effect="lossy",
    launches=("quantize_heads",),
)
