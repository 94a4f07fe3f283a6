"""What this machine can do at best: products, attention and copies, each measured on one large problem."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

_REPEATS = 7


@dataclass(frozen=True)
class Ceilings:
    """Rates per second."""

    linear_flop: float
    attention_flop: float
    copy_bytes: float
    """Read and written, by a kernel like those it is the ceiling of: copy engines are slower."""


def measure_ceilings(device: Any, dtype: Any, *, head_dim: int, fp8: bool) -> Ceilings:
    """On `device` in `dtype`; `fp8`: products of float8 matrices, where hardware has them."""
    import torch

    large = device.type == "cuda"
    rows, width = (8192, 12288) if large else (512, 768)
    tokens, heads = (8192, 24) if large else (512, 4)
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Any:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    query = draw(1, heads, tokens, head_dim)
    source = torch.empty(2**28 if large else 2**22, dtype=torch.float32, device=device).fill_(1.0)
    target = torch.empty_like(source)
    with torch.no_grad():
        return Ceilings(
            linear_flop=2.0 * rows * width * width / _seconds(device, _product(draw, rows, width, fp8)),
            attention_flop=4.0 * heads * tokens**2 * head_dim / _seconds(device, lambda: _attend(query)),
            copy_bytes=2.0 * source.nbytes / _seconds(device, lambda: torch.neg(source, out=target)),
        )


def _product(draw: Callable[..., Any], rows: int, width: int, fp8: bool) -> Callable[[], Any]:
    import torch

    x, weight = draw(rows, width), draw(width, width)
    if not fp8:
        return lambda: torch.nn.functional.linear(x, weight)
    from kontext_fast.engine.fp8 import quantize
    from kontext_fast.engine.kernels.fp8_linear import fp8_linear

    left, right = quantize(x), quantize(weight)
    return lambda: fp8_linear(left, right, None)


def _attend(query: Any) -> Any:
    from kontext_fast.engine.attention import attention, resolve_kernel

    tokens_first = query.transpose(1, 2)
    return attention(resolve_kernel("default", query.device.type), tokens_first, tokens_first, tokens_first)


def _seconds(device: Any, call: Callable[[], Any]) -> float:
    """Of one call: the median, once warm."""
    import torch

    samples = []
    for _ in range(_REPEATS + 2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        samples.append(time.perf_counter() - began)
    return median(samples[2:])
