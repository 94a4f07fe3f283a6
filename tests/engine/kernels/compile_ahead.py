"""Compile for a GPU that need not be there what the operations launch at given sizes: prints one JSON object.

Usage: python -m tests.engine.kernels.compile_ahead CAPABILITY, as in 90
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

from kontext_fast.engine.kernels.fused import FusedOps
from kontext_fast.engine.kernels.group_norm_silu import group_norm_silu
from kontext_fast.engine.ops import JointQKV, QKNorm, Rope


class Variants:
    """Takes the place of launching: notes what Triton would tell apart."""

    def __init__(self) -> None:
        self.sources: dict[tuple[Any, ...], tuple[ASTSource, dict[str, Any]]] = {}

    def launch(self, kernel: Any, *positional: Any, grid: Any, warmup: bool, **named: Any) -> None:
        arguments = dict(zip((parameter.name for parameter in kernel.params), positional, strict=False)) | named
        signature, constants, alignment = {}, {}, {}
        for index, parameter in enumerate(kernel.params):
            value = arguments.pop(parameter.name)
            specialized = not parameter.do_not_specialize
            if parameter.is_constexpr or value is None or (specialized and type(value) is int and value == 1):
                signature[parameter.name] = "constexpr"
                constants[parameter.name] = value
                continue
            signature[parameter.name] = mangle_type(value)
            address = 0 if isinstance(value, torch.Tensor) else value
            if specialized and isinstance(address, int) and address % 16 == 0:
                alignment[(index,)] = [["tt.divisibility", 16]]
        key = kernel.__name__, *map(str, (signature, constants, alignment, arguments))
        self.sources[key] = ASTSource(kernel, signature, constants, alignment), arguments


def run_every_operation(tokens: int, heads: int, channels: int, *, fp8: bool) -> None:
    """As a step does, on tensors without memory."""
    ops, width = FusedOps("math"), heads * channels

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    stream, wide = empty(2, tokens, width), empty(2, tokens, 7 * width)
    shift, scale, gate = empty(2, 3 * width).chunk(3, -1)
    rope = Rope(*(empty(tokens, channels // 2, dtype=torch.float32) for _ in range(2)))
    joint = JointQKV(*(empty(2, tokens, heads, channels) for _ in range(3)))
    ops.write_qkv(wide[..., : 3 * width], QKNorm(empty(channels), empty(channels), 1e-6), rope, joint, tokens // 3)
    for quantize in (False, True) if fp8 else (False,):
        ops.norm_modulate(stream[:, 5:], shift, scale, quantize=quantize)
        ops.prepare(stream[:, 5:], quantize=quantize)
        ops.gelu(empty(2, tokens, 4 * width), quantize=quantize)
        ops.join_gelu(stream, wide[..., 3 * width :], quantize=quantize)
    ops.add_gated(stream[:, 5:], gate, empty(2, tokens - 5, width))


def run_norms(side: int) -> None:
    """Of a VAE whose images are `side` high, at the widths of the full size."""
    for channels in (128, 256, 512):
        x = torch.empty(1, channels, side, 40, dtype=torch.bfloat16, device="meta")
        weight, bias = torch.empty(2, channels, dtype=torch.bfloat16, device="meta")
        group_norm_silu(x.contiguous(memory_format=torch.channels_last), 32, weight, bias, 1e-6)


def report(source: ASTSource, options: dict[str, Any], capability: int) -> dict[str, Any]:
    """Compile and say what was made of it."""
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = kernel.asm["ptx"]
    return {
        "narrow": re.findall(r"(?:ld|st)\.global\.(?!v)\w+", ptx),
        "wide": len(re.findall(r"(?:ld|st)\.global\.v", ptx)),
        "spilled": _spilled(ptx, capability),
    }


def _spilled(ptx: str, capability: int) -> int:
    """Bytes of registers that went to local memory."""
    architecture = re.findall(r"\.target (\w+)", ptx)[0]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        command = [get_ptxas(capability).path, "-v", f"-arch={architecture}", str(file), "-o", f"{file}.cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(map(int, re.findall(r"(\d+) bytes (?:stack frame|spill)", said)))


def main(capability: int) -> dict[str, Any]:
    """What each kernel became, and how many there are after each of several numbers of tokens."""
    JITFunction.run = lambda kernel, *positional, **named: variants.launch(kernel, *positional, **named)
    fp8 = capability >= 89
    counts: dict[str, list[int]] = {}
    sizes: dict[str, Callable[[int], None]] = {
        "full": lambda tokens: run_every_operation(tokens, 24, 128, fp8=fp8),
        "tiny": lambda tokens: run_every_operation(tokens, 5, 32, fp8=fp8),
        "vae": run_norms,
    }
    kernels: dict[str, Any] = {}
    for size, run in sizes.items():
        variants = Variants()
        counts[size] = []
        for tokens in (8704, 4608, 1003, 17):
            run(tokens)
            counts[size].append(len(variants.sources))
        for number, (source, options) in enumerate(variants.sources.values()):
            kernels[f"{size} {source.name} {number}"] = report(source, options, capability)
    return {"variants": counts, "kernels": kernels}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(int(sys.argv[1]))))
