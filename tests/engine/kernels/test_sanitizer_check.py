"""What is run under a tool that watches memory holds here, and would tell a kernel that is wrong."""

from __future__ import annotations

import pytest
import torch

from tests.engine.kernels.oracle import DEVICE

from benchmarks.gpu import kernel_check, kernel_stages, sanitizer_check  # isort: skip (as in its neighbours)
from kontext_fast.engine.kernels.fused import FusedOps  # isort: skip


def test_kernels_of_the_vae_are_right_and_a_wrong_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sanitizer_check.vae_kernels_are_right(DEVICE, (2, 32, 5, 3))
    assert sanitizer_check.softmax_is_right(DEVICE, 300)
    bias = sanitizer_check.add_bias
    monkeypatch.setattr(sanitizer_check, "add_bias", lambda x, b, r: bias(x, b * 1.01, r))
    assert not sanitizer_check.vae_kernels_are_right(DEVICE, (2, 32, 5, 3))
    monkeypatch.setattr(sanitizer_check, "softmax", lambda scores, *_: torch.softmax(scores * 0.2, -1))
    assert not sanitizer_check.softmax_is_right(DEVICE, 300)


def test_operations_of_a_step_are_right_and_a_wrong_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitizer_check, "_STEPS", [(2, 3, 3, 32)])
    for module in (kernel_check, kernel_stages):
        monkeypatch.setattr(module, "DEVICE", DEVICE)
    assert sanitizer_check.step_is_right("bf16")
    gelu = FusedOps.join_gelu
    monkeypatch.setattr(FusedOps, "join_gelu", lambda ops, x, mlp, **options: gelu(ops, x, mlp * 1.1, **options))
    assert not sanitizer_check.step_is_right("bf16")
