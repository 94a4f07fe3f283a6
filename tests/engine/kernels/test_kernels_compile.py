"""What no interpreter says: the kernels compile for real GPUs, without one, into the accesses they were written for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from tests.engine.kernels import oracle  # noqa: F401 (skips without triton)

NARROW = {"_write_qkv": 2, "_quantize_heads": 2, "quantize": 1, "_norm": 1}
"""Narrow accesses of kernels, by a part of their names: the weights of a head's norm, one scale per row, or one and its
maximum per head. The first part that fits holds."""


@cache
def _compiled(capability: int) -> dict[str, Any]:
    # In a process of its own: in this one, kernels may be interpreted.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.engine.kernels.compile_ahead", str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize(
    ("capability", "variants"),
    [pytest.param(80, 5, marks=pytest.mark.slow), pytest.param(89, 11, marks=pytest.mark.slow), (90, 11)],
)
def test_kernels_compile_once_per_width(capability: int, variants: int) -> None:
    counts = {"full": [variants] * 4, "tiny": [variants] * 4, "vae": [9] * 4}
    assert _compiled(capability)["variants"] == counts


def test_precompiled_kernels_are_those_of_a_step() -> None:
    compiled = _compiled(90)
    assert set(compiled["first"]) == {"bf16", "fp8"}
    for precision, first in compiled["first"].items():
        assert first == compiled["step"][precision], precision
    assert len(compiled["first"]["bf16"]) == 5
    assert len(compiled["first"]["fp8"]) == 7


def test_full_size_kernels_access_wide_and_spill_nothing() -> None:
    for name, kernel in _compiled(90)["kernels"].items():
        if not name.startswith("full"):
            continue
        few = next((most for part, most in NARROW.items() if part in name), 0)
        assert len(kernel["narrow"]) <= few, name
        assert kernel["wide"] >= 2, name
        assert kernel["spilled"] == 0, name


def test_vae_norms_access_wide_and_spill_nothing() -> None:
    for name, kernel in _compiled(90)["kernels"].items():
        if not name.startswith("vae"):
            continue
        assert kernel["spilled"] == 0, name
        if "_combine" not in name:  # which reads few numbers
            assert kernel["wide"] >= 2, name
