"""Who computes on which device, decided before anything runs. Imports torch only when operations are made."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from kontext_fast.errors import InvalidInput

if TYPE_CHECKING:
    import torch

    from kontext_fast.engine.attention import AttentionKernel
    from kontext_fast.engine.ops import KernelKind, Ops
    from kontext_fast.engine.weights import Precision

FUSED = "kontext_fast.engine.kernels.fused"

_NEEDED = {"bf16": (8, 0), "fp8": (8, 9)}
"""Compute capability at which the hardware multiplies in a precision."""

_CPU_ATTENTION = ("default", "math")


def has_fused_kernels() -> bool:
    """Whether what the fused kernels are written in is installed; CUDA builds of PyTorch bring it on Linux."""
    return find_spec("triton") is not None


def refusal(
    device: str, capability: tuple[int, int] | None, precision: Precision, attention: AttentionKernel
) -> str | None:
    """Why a device of this type cannot run the engine so, as one sentence that names the remedy, or None."""
    if device == "cpu":
        if attention not in _CPU_ATTENTION:
            return f"the attention kernel {attention} needs a CUDA device; use attention=default"
        return None
    if device != "cuda":
        return f"the engine is not supported on {device}; use the preset baseline"
    if capability is not None and capability < _NEEDED[precision]:
        major, minor = _NEEDED[precision]
        instead = "the preset faithful" if precision == "fp8" else "the preset baseline"
        return (
            f"the engine in {precision} needs compute capability {major}.{minor}, "
            f"this GPU has {capability[0]}.{capability[1]}; use {instead}"
        )
    if attention in ("flash3", "flash3_fp8"):
        from kontext_fast.engine.attention import flash3_refusal

        if (reason := flash3_refusal(attention, capability)) is not None:
            return reason
    if has_fused_kernels():
        return _fused_refusal(capability, precision)
    if precision == "fp8":
        return "fp8 on a GPU needs the fused kernels and so Triton; run `pip install triton` or use the preset faithful"
    if attention == "flash3_fp8":
        return (
            "flash3_fp8 needs the fused kernels, which need Triton; run `pip install triton` or use attention=default"
        )
    return None


def require_dtype(device: str, dtype: torch.dtype) -> None:
    """Raise InvalidInput if fast attention and matrix products on `device` do not take the checkpoint's `dtype`."""
    if device == "cuda" and str(dtype) != "torch.bfloat16":
        raise InvalidInput(
            f"On a GPU the engine runs in bfloat16, not {str(dtype).removeprefix('torch.')}; "
            "load the pipeline with dtype=torch.bfloat16."
        )


def kernel_kind(device: str, precision: Precision) -> KernelKind:
    """Who will compute."""
    if device == "cuda" and has_fused_kernels():
        return "fused"
    return "emulated" if precision == "fp8" else "portable"


def make_ops(device: str, precision: Precision, attention: AttentionKernel) -> Ops:
    """The operations for a device that `refusal` accepted."""
    kind = kernel_kind(device, precision)
    if kind == "fused":
        ops: Ops = _fused().FusedOps(attention)
        return ops
    from kontext_fast.engine.ops import PortableOps

    return PortableOps(attention, device=device, emulates_fp8=kind == "emulated")


def _fused() -> Any:
    return importlib.import_module(FUSED)


def _fused_refusal(capability: tuple[int, int] | None, precision: Precision) -> str | None:
    if capability is None:
        return None
    reason: str | None = _fused().refusal(capability, precision)
    return reason
