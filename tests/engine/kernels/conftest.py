"""Where the kernels run: on a GPU if there is one, else on the CPU in Triton's interpreter.

The interpreter truncates to bfloat16 and float8 where hardware rounds to nearest even and saturates, and loses NaN.
Its conversions are replaced by PyTorch's, so that what is computed here is what a GPU computes.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

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


@pytest.fixture(autouse=True)
def _interpreted_exactly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not INTERPRETED:
        yield
        return
    from triton.runtime import interpreter

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(interpreter, "_convert_float", _converted)
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
