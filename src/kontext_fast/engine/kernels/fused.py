"""The operations of a step by fused kernels: Triton for everything element by element, libraries for the products.

Kernels are compiled once per width of the model, never per number of tokens, and nothing is tuned while running.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional

from kontext_fast.engine.attention.base import AttentionKernel
from kontext_fast.engine.attention.pytorch import CUDNN
from kontext_fast.engine.flops import Dimensions
from kontext_fast.engine.kernels.add_gated import add_gated
from kontext_fast.engine.kernels.fp8_linear import fp8_linear
from kontext_fast.engine.kernels.gelu import gelu
from kontext_fast.engine.kernels.gelu_linear import gelu_linear, rounds_to_e4m3
from kontext_fast.engine.kernels.int8_linear import int8_linear
from kontext_fast.engine.kernels.int8_rows import quantize_int8
from kontext_fast.engine.kernels.norm_modulate import norm_modulate
from kontext_fast.engine.kernels.quantize_rows import quantize_beside, quantize_rows
from kontext_fast.engine.kernels.registry import precompile_calls
from kontext_fast.engine.kernels.write_qkv import write_qkv
from kontext_fast.engine.ops import (
    LAYER_NORM_EPS,
    Activations,
    Attend,
    JointQKV,
    KernelKind,
    Linear,
    Precision,
    QKNorm,
    Quantized,
    Rope,
    attend,
    scales_of_rows,
)


def refusal() -> str | None:
    """Why this machine cannot build and run them, as one sentence that names the remedy, or None."""
    if torch.version.hip is not None:
        return "the fused kernels are written for NVIDIA GPUs; use the preset baseline"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton compiles its launcher with a C compiler and finds none; install gcc or set CC"
    if not (_python_headers() / "Python.h").is_file():
        return "Triton compiles its launcher against Python.h, which is missing; install Python's development package"
    return None


def _python_headers() -> Path:
    # Where Triton looks: Debian's default scheme names a folder of its own, in which they never are.
    scheme = sysconfig.get_default_scheme()
    return Path(sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme))


class FusedOps:
    """`kontext_fast.engine.ops.Ops` on one CUDA device. Keeps float32 within an operation and rounds once."""

    quantized_precision: ClassVar[Precision] = "fp8"

    def __init__(self, attention: AttentionKernel = CUDNN) -> None:
        self.attention_kernel = attention

    @property
    def kernel(self) -> KernelKind:
        return "fused"

    def precompile_calls(
        self, transformer: Any, device: torch.device, *, quantize: bool
    ) -> Sequence[Callable[[], object]]:
        return precompile_calls(
            self,
            Dimensions.of(transformer),
            transformer.dtype,
            device,
            precision=self.quantized_precision if quantize else "bf16",
            quantize_attention=self.attention_kernel.quantized,
        )

    def has_static_scales(self, device: torch.device) -> bool:
        return self.quantized_precision == "fp8" and rounds_to_e4m3(device)

    def norm_modulate(
        self, x: Tensor, shift: Tensor, scale: Tensor, *, quantize: bool, static: Tensor | None = None
    ) -> Activations:
        rounding = self._rounding(quantize, static)
        return norm_modulate(x, shift, scale, LAYER_NORM_EPS, **rounding)

    def add_norm_modulate(
        self,
        stream: Tensor,
        gate: Tensor,
        update: Tensor,
        shift: Tensor,
        scale: Tensor,
        *,
        quantize: bool,
        static: Tensor | None = None,
    ) -> Activations:
        rounding = self._rounding(quantize, static)
        return norm_modulate(stream, shift, scale, LAYER_NORM_EPS, gate=gate, update=update, **rounding)

    def _rounding(self, quantize: bool, static: Tensor | None) -> dict[str, Any]:
        int8 = self.quantized_precision == "int8"
        return {"quantize": quantize, "int8": int8, "static": None if static is None else static[0]}

    def write_qkv(self, qkv: Tensor, norm: QKNorm, rope: Rope, joint: JointQKV, offset: int) -> None:
        write_qkv(qkv, norm, rope, joint, offset)

    def write_all_qkv(self, qkv: Tensor, norm: QKNorm, rope: Rope, joint: JointQKV) -> JointQKV:
        if joint.scales is not None:
            write_qkv(qkv, norm, rope, joint, 0)
            return joint
        write_qkv(qkv, norm, rope, joint, 0, writes_value=False)
        return replace(joint, value=qkv.view(*qkv.shape[:2], 3, *joint.query.shape[2:])[:, :, 2])

    def attention(self, joint: JointQKV, into: Tensor | None = None) -> Tensor:
        return attend(self.attention_kernel, joint, into)

    def prepare(self, x: Tensor, *, quantize: bool) -> Activations:
        return quantize_rows(x) if quantize else x

    def gelu(self, x: Tensor, *, quantize: bool) -> Activations:
        return gelu(x, quantize=quantize)

    def join_gelu(self, attended: Tensor, hidden: Tensor, *, quantize: bool) -> Activations:
        return gelu(hidden, beside=attended, quantize=quantize)

    def linear(self, x: Activations, layer: Linear) -> Tensor:
        if isinstance(x, Quantized) and isinstance(layer.weight, Quantized):
            return fp8_linear(x, layer.weight, layer.bias)
        if isinstance(x, Quantized) or isinstance(layer.weight, Quantized):
            raise TypeError("activations and weight must both be quantized, or neither")
        return functional.linear(x, layer.weight, layer.bias)

    def linear_gelu(
        self, x: Activations, layer: Linear, *, quantize: bool, static: Tensor | None = None
    ) -> Activations:
        if static is not None and isinstance(x, Quantized):
            values = gelu_linear(x, layer, static=static)
            return Quantized(values, scales_of_rows(static[1], values), x.dtype)
        if quantize or not _activates(x, layer):
            return self.gelu(self.linear(x, layer), quantize=quantize)
        return gelu_linear(x, layer)

    def join_linear_gelu(
        self, attend: Attend, x: Activations, layer: Linear, *, quantize: bool, static: Tensor | None = None
    ) -> Activations:
        if static is not None and isinstance(x, Quantized):
            joined = gelu_linear(x, layer, static=static, beside=x.values.shape[-1])
            return quantize_beside(attend(), static[1], joined)
        if quantize or not _activates(x, layer):
            hidden = self.linear(x, layer)
            return self.join_gelu(attend(), hidden, quantize=quantize)
        joined = gelu_linear(x, layer, beside=x.shape[-1])
        attend(into=joined[..., : x.shape[-1]])
        return joined

    def add_gated(self, stream: Tensor, gate: Tensor, update: Tensor) -> None:
        add_gated(stream, gate, update)


def _activates(x: Activations, layer: Linear) -> TypeGuard[Tensor]:
    """Whether the product of `x` and `layer` can apply the GELU to what it writes in bfloat16."""
    on_gpu = isinstance(x, Tensor) and x.is_cuda and x.dtype == torch.bfloat16
    return on_gpu and layer.bias is not None and not layer.quantized


class FusedInt8Ops(FusedOps):
    """The same in int8: rows are rotated where they are rounded, and products in int8 activate what they write."""

    quantized_precision = "int8"

    def prepare(self, x: Tensor, *, quantize: bool) -> Activations:
        return quantize_int8(x) if quantize else x

    def gelu(self, x: Tensor, *, quantize: bool) -> Activations:
        return self.prepare(gelu(x, quantize=False), quantize=quantize)  # type: ignore[arg-type]

    def join_gelu(self, attended: Tensor, hidden: Tensor, *, quantize: bool) -> Activations:
        return self.prepare(gelu(hidden, beside=attended, quantize=False), quantize=quantize)  # type: ignore[arg-type]

    def linear(self, x: Activations, layer: Linear) -> Tensor:
        if isinstance(x, Quantized) and isinstance(layer.weight, Quantized):
            return int8_linear(x, layer.weight, layer.bias)
        return super().linear(x, layer)

    def linear_gelu(
        self, x: Activations, layer: Linear, *, quantize: bool, static: Tensor | None = None
    ) -> Activations:
        if not (quantize and isinstance(x, Quantized) and isinstance(layer.weight, Quantized)):
            return super().linear_gelu(x, layer, quantize=quantize)
        return quantize_int8(int8_linear(x, layer.weight, layer.bias, gelu=True))

    def join_linear_gelu(
        self, attend: Attend, x: Activations, layer: Linear, *, quantize: bool, static: Tensor | None = None
    ) -> Activations:
        if not (quantize and isinstance(x, Quantized) and isinstance(layer.weight, Quantized)):
            return super().join_linear_gelu(attend, x, layer, quantize=quantize)
        activated = int8_linear(x, layer.weight, layer.bias, gelu=True)
        return quantize_int8(attend(), beside=activated)
