"""Which operations and which attention kernel run on which device, decided before anything runs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from kontext_fast.errors import InvalidInput

if TYPE_CHECKING:
    import torch

    from kontext_fast.engine.attention.base import AttentionKernel
    from kontext_fast.engine.ops import KernelKind, Ops, Precision

FUSED = "kontext_fast.engine.kernels.fused"

AUTO = "auto"
"""The fastest kernel of attention that the machine can run and whose effect is rounding only."""

LOWEST_CAPABILITY: Mapping[Precision, tuple[int, int]] = {"bf16": (8, 0), "fp8": (8, 9), "int8": (9, 0)}
"""Of a GPU with matrix products in a precision."""

STEP_GRAPHS_UP_TO: Mapping[str, int] = {"H100": 4608, "H200": 4608}
"""Tokens of all samples of a step, by a word in a card's name: with so many or fewer, kernels of the full architecture
may be over before a host has launched the next ones. An H100 gains with 2560 and not with 5120, even where the host is
10 us slower at each launch; an H200 has the same chip."""


@cache
def attention_kernels() -> Mapping[str, AttentionKernel]:
    """Every kernel of attention by name. Raises KontextError as `discovery.values` does."""
    from kontext_fast import discovery
    from kontext_fast.engine import attention
    from kontext_fast.engine.attention.base import AttentionKernel

    return discovery.values(attention, AttentionKernel, "attention kernel")


def fastest_attention(device: str, capability: tuple[int, int] | None) -> AttentionKernel:
    """What `auto` stands for on a device type; of a GPU about which nothing is known, kernels that run on all."""

    def can_run(kernel: AttentionKernel) -> bool:
        if device not in kernel.devices or kernel.effect == "lossy" or not kernel.preference:
            return False
        return kernel.refusal is None or (capability is not None and kernel.refusal(capability) is None)

    return max(filter(can_run, attention_kernels().values()), key=lambda kernel: kernel.preference)


def attention_kernel(name: str, device: str) -> AttentionKernel:
    """The kernel of that name on a device type. Raises InvalidInput for a name that no kernel has."""
    if name == AUTO:
        return fastest_attention(device, None)
    kernels = attention_kernels()
    if name not in kernels:
        from kontext_fast.discovery import unknown_name

        raise InvalidInput(unknown_name("attention kernel", name, [AUTO, *kernels]))
    return kernels[name]


def has_fused_kernels() -> bool:
    """Whether Triton is installed; CUDA builds of PyTorch depend on it on Linux."""
    return find_spec("triton") is not None


def refusal(device: str, capability: tuple[int, int] | None, precision: Precision, attention: str = AUTO) -> str | None:
    """Why a device of this type cannot run the engine so, as one sentence that names the remedy, or None."""
    if device not in ("cpu", "cuda"):
        return f"the engine is not supported on {device}; use the preset baseline"
    kernel = attention_kernel(attention, device)
    if device not in kernel.devices:
        devices = " or ".join(name.replace("cuda", "CUDA device").replace("cpu", "CPU") for name in kernel.devices)
        return f"the attention kernel {attention} needs a {devices}; use attention=auto"
    if device == "cpu":
        return None
    if capability is not None and capability < LOWEST_CAPABILITY[precision]:
        major, minor = LOWEST_CAPABILITY[precision]
        instead = "the preset baseline" if precision == "bf16" else "the preset faithful"
        return (
            f"the engine in {precision} needs compute capability {major}.{minor}, "
            f"this GPU has {capability[0]}.{capability[1]}; use {instead}"
        )
    if kernel.refusal is not None and (reason := kernel.refusal(capability)) is not None:
        return reason
    if has_fused_kernels():
        # An unknown GPU is one of a test or a listing, so its compiler is unknown, too.
        reason = None if capability is None else _fused().refusal()
        return None if reason is None else str(reason)
    if precision != "bf16":
        return (
            f"{precision} on a GPU needs the fused kernels and so Triton; "
            "run `pip install triton` or use the preset faithful"
        )
    if kernel.quantized:
        return f"{attention} needs the fused kernels and so Triton; run `pip install triton` or use attention=auto"
    return None


def tokens_for_graphs(device: torch.device) -> int:
    """Of all samples of a step, the most with which a CUDA graph launches its kernels; 0 on devices without a row."""
    if device.type != "cuda":
        return 0
    import torch

    name = torch.cuda.get_device_name(device)
    return next((tokens for card, tokens in STEP_GRAPHS_UP_TO.items() if card in name), 0)


def require_dtype(device: str, dtype: torch.dtype) -> None:
    """Raise InvalidInput if fast attention and matrix products on `device` do not take the checkpoint's `dtype`."""
    if device == "cuda" and str(dtype) != "torch.bfloat16":
        raise InvalidInput(
            f"On a GPU the engine runs in bfloat16, not {str(dtype).removeprefix('torch.')}; "
            "load the pipeline with dtype=torch.bfloat16."
        )


def kernel_kind(device: str, precision: Precision) -> KernelKind:
    """Which implementation of the operations will run."""
    if device == "cuda" and has_fused_kernels():
        return "fused"
    return "emulated" if precision == "fp8" else "portable"


def make_ops(device: str, precision: Precision, attention: str = AUTO) -> Ops:
    """The operations for a device that `refusal` accepted."""
    kind, kernel = kernel_kind(device, precision), attention_kernel(attention, device)
    if kind == "fused":
        ops: Ops = (_fused().FusedInt8Ops if precision == "int8" else _fused().FusedOps)(kernel)
        return ops
    from kontext_fast.engine.ops import PortableOps

    return PortableOps(kernel, precision)


def _fused() -> Any:
    return importlib.import_module(FUSED)
