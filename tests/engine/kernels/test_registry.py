"""What kernels say about themselves holds: their operations are those of plain PyTorch, and write what they should."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kontext_fast.bench.roofline import _our_functions
from kontext_fast.engine import kernels as package
from kontext_fast.engine.flops import FLUX_KONTEXT_DEV, Tokens
from kontext_fast.engine.kernels.registry import Inputs, Operation, kernels, precompile_calls, step_bytes
from kontext_fast.engine.ops import PortableOps, Precision, Quantized
from tests.conftest import AddPlugin
from tests.engine.kernels.oracle import DEVICE, fused, noise

NEW_KERNEL = """
from kontext_fast.engine.kernels.registry import Kernel, Operation

def _dummy():
    pass

DUMMY = Kernel("dummy", (_dummy,), (
    Operation("gelu", lambda inputs: lambda ops, quantize: [ops.gelu(inputs.stream(), quantize=quantize)],
              lambda dimensions, read, written: read + written, per_single=1, for_outputs=1,
              quantizes={"bf16": (False,), "fp8": (True,)}),
))
"""

SMALL = replace(FLUX_KONTEXT_DEV, heads=3, head_dim=32)
OPERATIONS = [operation for kernel in kernels().values() for operation in kernel.operations]
VARIANTS = [
    pytest.param(operation, precision, quantize, id=f"{operation.name}-{precision}{'-quantized' if quantize else ''}")
    for operation in OPERATIONS
    for precision, variants in operation.quantizes.items()
    for quantize in variants
]


def _inputs(device: str, dtype: torch.dtype) -> Inputs:
    def draw(*shape: int) -> Tensor:
        return noise(*shape, dtype=dtype).to(device)

    def draw_view(batch: int, rows: int, width: int) -> Tensor:
        larger = torch.full((batch, rows + 3, width + 32), torch.nan, dtype=dtype, device=device)
        view = larger[:, 2 : 2 + rows, 16 : 16 + width]
        return view.copy_(noise(batch, rows, width))

    return Inputs(SMALL, batch=2, rows=5, draw=draw, draw_view=draw_view)


def _numbers(outputs: object) -> Tensor:
    parts = (part.dequantized() if isinstance(part, Quantized) else part for part in outputs)  # type: ignore[attr-defined]
    return torch.cat([part.flatten().double().cpu() for part in parts])


@pytest.mark.parametrize(("operation", "precision", "quantize"), VARIANTS)
def test_operation_equals_plain_pytorch(operation: Operation, precision: Precision, quantize: bool) -> None:
    dtype = torch.bfloat16 if "linear" in operation.name else torch.float32
    expected = _numbers(operation.bind(_inputs("cpu", dtype))(PortableOps(precision=precision), quantize))
    result = _numbers(operation.bind(_inputs(DEVICE, dtype))(fused(precision), quantize))
    assert torch.equal(result.isnan(), expected.isnan()), "wrote something else, or not all of it"
    written = ~expected.isnan()
    error = float((result - expected)[written].norm() / expected[written].norm())
    # A number half-way between two of e4m3 may round to either, and so may one of bfloat16 that a card sums otherwise.
    assert error < (0.01 if quantize else 1e-5 if DEVICE == "cpu" else 3e-4)


def test_function_belongs_to_one_kernel() -> None:
    names = [function.__name__ for kernel in kernels().values() for function in kernel.functions]
    assert len(names) == len(set(names)) >= 9
    assert {name for name in names if not name.startswith("_")} == set()


@pytest.mark.parametrize(("precision", "count"), [("bf16", 5), ("fp8", 11), ("int8", 10)])
def test_precompile_calls_cover_a_step(precision: Precision, count: int) -> None:
    ops, dtype, device = fused(precision), torch.bfloat16, torch.device(DEVICE)
    calls = precompile_calls(ops, SMALL, dtype, device, precision=precision)
    assert len(calls) == count
    with_attention = precompile_calls(ops, SMALL, dtype, device, precision=precision, quantize_attention=True)
    assert len(with_attention) == count
    for call in (*calls, *with_attention):
        call()


def test_new_kernel_is_compiled_ahead_counted_and_profiled(add_plugin: AddPlugin) -> None:
    device, tokens = torch.device(DEVICE), Tokens(text=1, image=2, reference=2)
    before = len(precompile_calls(fused("fp8"), SMALL, torch.bfloat16, device, precision="fp8"))
    add_plugin(package, "dummy", NEW_KERNEL, kernels, _our_functions)
    calls = precompile_calls(fused("fp8"), SMALL, torch.bfloat16, device, precision="fp8")
    assert len(calls) == before + 1
    for call in calls:
        call()
    assert step_bytes(SMALL, tokens, "full", precision="fp8")["dummy"] == (5 * SMALL.single_blocks - 3) * (2 + 1)
    assert _our_functions()["_dummy"] == "dummy"
