"""Compile for a GPU that need not be there what the operations launch at given sizes: prints one JSON object.

Usage: python -m tests.engine.kernels.compile_ahead CAPABILITY, as in 90
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

from kontext_fast.engine.attention.pytorch import MATH
from kontext_fast.engine.dispatch import LOWEST_CAPABILITY
from kontext_fast.engine.flops import Dimensions
from kontext_fast.engine.kernels import fused
from kontext_fast.engine.kernels.between_convolutions import add_bias, double_sides, softmax
from kontext_fast.engine.kernels.fused import FusedInt8Ops, FusedOps
from kontext_fast.engine.kernels.group_norm_silu import group_norm_silu
from kontext_fast.engine.kernels.registry import Inputs, kernels, precompile_calls
from kontext_fast.engine.ops import Activations, Linear, Precision, Quantized
from kontext_fast.engine.transformer import EngineTransformer
from kontext_fast.engine.weights import take_weights
from tests.engine.transformers import Shape, inputs_for, prepare, random_transformer, stepped


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
            address = value.data_ptr() if isinstance(value, torch.Tensor) else value
            if specialized and isinstance(address, int) and address % 16 == 0:
                alignment[(index,)] = [["tt.divisibility", 16]]
        key = kernel.__name__, *map(str, (signature, constants, alignment, arguments))
        self.sources[key] = ASTSource(kernel, signature, constants, alignment), arguments


def _dimensions(heads: int, channels: int) -> Dimensions:
    return Dimensions(
        double_blocks=1, single_blocks=1, heads=heads, head_dim=channels, latent_channels=64, text_channels=64,
        pooled_channels=64,
    )  # fmt: skip


def run_every_operation(tokens: int, heads: int, channels: int, precisions: Sequence[Precision]) -> None:
    """Every operation of every kernel, on tensors without memory."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    def view(batch: int, rows: int, width: int) -> torch.Tensor:
        return empty(batch, rows + 5, width)[:, 5:]

    inputs = Inputs(_dimensions(heads, channels), 2, tokens, empty, view)
    for operation in (operation for kernel in kernels().values() for operation in kernel.operations):
        for precision in precisions:
            for quantize in operation.quantizes.get(precision, ()):
                # Quantized attention is in float8.
                if not (operation.for_attention and quantize) or "fp8" in precisions:
                    operation.bind(inputs)(_ops(precision), quantize)


def run_precompiled(heads: int, channels: int, precision: Precision) -> None:
    """As applying the engine does."""
    dimensions, device = _dimensions(heads, channels), torch.device("cpu")
    for call in precompile_calls(_ops(precision), dimensions, torch.bfloat16, device, precision=precision):
        call()


def run_step(heads: int, channels: int, precision: Precision) -> None:
    """A whole step of a transformer of three blocks, in which nothing but the kernels runs."""
    shape = Shape(double=2, single=1, heads=heads, head_dim=channels, axes=(channels - 16, 8, 8))
    transformer = random_transformer(shape, torch.bfloat16)
    inputs = inputs_for(transformer, batch=2, text=3, image=(2, 2), reference=(1, 2))
    with ExitStack() as undo:
        engine = EngineTransformer(take_weights(transformer, precision, undo), _ops(precision))
        stepped(engine, prepare(engine, inputs), inputs)


def _ops(precision: Precision) -> FusedOps:
    return (FusedInt8Ops if precision == "int8" else _WithoutProducts)(MATH)


class _WithoutProducts(FusedOps):
    """The libraries' need a GPU, and what they give does not decide what is compiled."""

    def linear(self, x: Activations, layer: Linear) -> torch.Tensor:
        rows = (x.values if isinstance(x, Quantized) else x).shape[:-1]
        weight = layer.weight.values if isinstance(layer.weight, Quantized) else layer.weight
        return torch.zeros(*rows, len(weight), dtype=torch.bfloat16)


def _gelu_linear(x: Activations, layer: Linear, *, static: torch.Tensor | None = None, beside: int = 0) -> torch.Tensor:
    values = x.values if isinstance(x, Quantized) else x
    weight = layer.weight.values if isinstance(layer.weight, Quantized) else layer.weight
    return torch.empty(*values.shape[:-1], beside + len(weight), dtype=values.dtype, device=values.device)


# As on a GPU that the library has all products for.
fused.gelu_linear = _gelu_linear
fused.rounds_to_e4m3 = lambda _device: True
fused._activates = lambda x, layer: not layer.quantized


def run_vae(side: int) -> None:
    """Of a VAE whose images are `side` high, at the widths of the full size."""
    for channels in (128, 256, 512):
        x = torch.empty(1, channels, side, 40, dtype=torch.bfloat16, device="meta")
        weight, bias = torch.empty(2, channels, dtype=torch.bfloat16, device="meta")
        x = x.contiguous(memory_format=torch.channels_last)
        group_norm_silu(x, 32, weight, bias, 1e-6)
        add_bias(x, bias)
        add_bias(x, bias, x)
        double_sides(x)
    softmax(torch.empty(1, 3, 16 * side, device="meta"), 0.04, torch.bfloat16)


def report(source: ASTSource, options: dict[str, Any], capability: int) -> dict[str, Any]:
    """Compile and say what was made of it."""
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = kernel.asm["ptx"]
    return {
        "narrow": re.findall(r"(?:ld|st)\.global\.(?!v)\w+", ptx),
        "wide": len(re.findall(r"(?:ld|st)\.global\.v", ptx)),
        "spilled": _spilled(ptx, capability),
        "shared": kernel.metadata.shared,
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


def launched(run: Callable[..., None], *arguments: Any) -> Variants:
    """What Triton would compile for `run`."""
    noted = Variants()
    JITFunction.run = lambda kernel, *positional, **named: noted.launch(kernel, *positional, **named)
    run(*arguments)
    return noted


def main(capability: int) -> dict[str, Any]:
    """What each kernel became, how many there are after each of several numbers of tokens, and which are launched first
    and which by a step."""
    precisions = [
        precision for precision, lowest in LOWEST_CAPABILITY.items() if capability >= 10 * lowest[0] + lowest[1]
    ]
    counts: dict[str, list[int]] = {}
    sizes: dict[str, Callable[[int], None]] = {
        "full": lambda tokens: run_every_operation(tokens, 24, 128, precisions),
        "tiny": lambda tokens: run_every_operation(tokens, 5, 32, precisions),
        "vae": run_vae,
    }
    kernels: dict[str, Any] = {}
    for size, run in sizes.items():
        sources: dict[tuple[Any, ...], tuple[ASTSource, dict[str, Any]]] = {}
        counts[size] = []
        for tokens in (8704, 4608, 1003, 17):
            sources |= launched(run, tokens).sources
            counts[size].append(len(sources))
        for number, (source, options) in enumerate(sources.values()):
            kernels[f"{size} {source.name} {number}"] = report(source, options, capability)
    first, later = (
        {precision: sorted(map(str, launched(run, 5, 32, precision).sources)) for precision in precisions}
        for run in (run_precompiled, run_step)
    )
    return {"variants": counts, "kernels": kernels, "first": first, "step": later}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(int(sys.argv[1]))))
