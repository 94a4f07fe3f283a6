"""Where the kernels run: on a GPU if there is one, else on the CPU in Triton's interpreter.

The interpreter truncates to bfloat16 and float8 where hardware rounds to nearest even and saturates, and loses NaN.
Its conversions are replaced by PyTorch's, so that what is computed here is what a GPU computes. Products of bfloat16 it
takes of the bits as integers; here they are of the numbers.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from kontext_fast.engine.ops import Linear, PortableOps, Quantized

INTERPRETED = find_spec("triton") is not None and not torch.cuda.is_available()

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8e4nv": torch.float8_e4m3fn}
_BITS = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32}

if INTERPRETED:
    # Read when a kernel is defined, here and in what Triton imports late; no other test or process shall see it.
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("kontext_fast.engine.kernels.registry").kernels()


def _converted(values: Any, source: Any, target: Any, _rounding: Any) -> Any:
    """The bits of `values`, a NumPy array that holds the bits of Triton type `source`, as Triton type `target`."""
    flat = torch.from_numpy(np.ascontiguousarray(values).reshape(-1)).view(_DTYPES[source.name]).float()
    if target.name == "fp8e4nv":
        flat = flat.clamp(-448, 448)
    rounded = flat.to(_DTYPES[target.name])
    return rounded.view(_BITS[rounded.itemsize]).numpy().reshape(np.shape(values))


def _indexed(patch: Any) -> Any:
    """What prepares tensors for a kernel, with an index of theirs that NumPy 2.4 converts, too."""

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    return patched


def _dot_of_numbers(dot: Any) -> Any:
    def create_dot(builder: Any, *operands: Any) -> Any:
        from triton import language as tl

        a, b = (
            builder.create_fp_ext(operand, tl.float32) if operand.dtype.scalar == tl.bfloat16 else operand
            for operand in operands[:2]
        )
        return dot(builder, a, b, *operands[2:])

    return create_dot


def _gelu_linear(x: Any, layer: Linear, *, static: torch.Tensor | None = None, beside: int = 0) -> torch.Tensor:
    """What the library's product gives, in plain PyTorch; it has no part that runs without a GPU."""
    activated = PortableOps(precision="fp8").linear_gelu(x, layer, quantize=static is not None, static=static)
    numbers = activated.values if isinstance(activated, Quantized) else activated
    out = torch.empty(*numbers.shape[:-1], beside + numbers.shape[-1], dtype=numbers.dtype)
    out[..., beside:] = numbers
    return out


@pytest.fixture(autouse=True)
def _interpreted_exactly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not INTERPRETED:
        yield
        return
    from triton.runtime import interpreter

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(interpreter, "_convert_float", _converted)
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", _indexed(interpreter._patch_lang_tensor))
    builder = interpreter.InterpreterBuilder
    monkeypatch.setattr(builder, "create_dot", _dot_of_numbers(builder.create_dot))
    fused = importlib.import_module("kontext_fast.engine.kernels.fused")
    monkeypatch.setattr(fused, "rounds_to_e4m3", lambda _device: True)
    monkeypatch.setattr(fused, "gelu_linear", _gelu_linear)
    # A GPU does not warn of an infinity either.
    with np.errstate(over="ignore", invalid="ignore"):
        yield


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """What an operation allocates is NaN until it is written."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
