"""FlashAttention-3: attention by a package that is installed apart, used only where it is asked for by name.

Shah et al., FlashAttention-3 (arXiv 2407.08608). Its kernels are written for Hopper GPUs.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_INTERFACES = ("fa3_fwd_interface", "flash_attn_interface")
"""Of the package fa3-fwd, whose wheels hold the forward pass only; and of a build from the authors' source."""


def interface() -> str | None:
    """The module that is installed, the first of those known; None if there is none."""
    return next((name for name in _INTERFACES if find_spec(name) is not None), None)


def refusal(kernel: str, capability: tuple[int, int] | None) -> str | None:
    """Why a GPU of that compute capability cannot run `kernel`, as one sentence that names the remedy, or None."""
    if capability is not None and capability[0] != 9:
        return (
            f"the attention kernel {kernel} runs on Hopper GPUs (compute capability 9.0), this one has "
            f"{capability[0]}.{capability[1]}; use attention=default"
        )
    if interface() is None:
        return (
            f"the attention kernel {kernel} needs FlashAttention-3; run `pip install fa3-fwd` or use attention=default"
        )
    return None


def flash3(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[B, rows, H, D] of `query` [B, rows, H, D] over `key` and `value` [B, S, H, D], bfloat16 on one GPU."""
    return _attended(query, key, value)


def flash3_fp8(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same with all three rounded to e4m3, one scale per sample and head, and the weights of values, too.

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
    name = interface()
    if name is None:
        raise ModuleNotFoundError("FlashAttention-3 is not installed")
    return importlib.import_module(name).flash_attn_func
