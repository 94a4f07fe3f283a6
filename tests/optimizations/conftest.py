"""What tests of several techniques share."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from kontext_fast.optimizations.techniques import fused_vae
from kontext_fast.optimizations.techniques.fused_vae import FusedVae
from tests import needs
from tests.engine.kernels.conftest import _converted


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As on a GPU; where there is none, Triton's interpreter runs them."""
    pytest.importorskip("triton", reason=needs.TRITON)
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        from triton.runtime import interpreter

        monkeypatch.setattr(interpreter, "_convert_float", _converted)
        # The interpreter runs in one thread.
        monkeypatch.setattr(FusedVae, "precompile_calls", lambda *_: ())
    monkeypatch.setattr(fused_vae, "_has_kernels", lambda _: True)
    return importlib.import_module("kontext_fast.engine.kernels.between_convolutions")
