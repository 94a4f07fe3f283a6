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

NARROW = {"_write_qkv": 5, "quantize": 2, "_norm": 2}
"""Narrow accesses of kernels, by a part of their names: the weights of a head's norm and three scales, one scale per
row and where that is known before. The first part that fits holds."""

PRODUCT = "_int8_linear"
"""The copy engine moves its tiles."""


SHARED_MEMORY = 227 * 1024
"""Bytes that a block may have on Hopper. A kernel that needs more compiles, and fails when it is launched."""


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
    [pytest.param(80, 6, marks=pytest.mark.slow), pytest.param(89, 15, marks=pytest.mark.slow), (90, 22)],
)
def test_kernels_compile_once_per_width(capability: int, variants: int) -> None:
    counts = {"full": [variants] * 4, "tiny": [variants] * 4, "vae": [19] * 4}
    assert _compiled(capability)["variants"] == counts


def test_precompiled_kernels_are_those_of_a_step() -> None:
    compiled = _compiled(90)
    assert set(compiled["first"]) == {"bf16", "fp8", "int8"}
    for precision, first in compiled["first"].items():
        assert first == compiled["step"][precision], precision
    assert len(compiled["first"]["bf16"]) == 5
    assert len(compiled["first"]["fp8"]) == 10
    assert len(compiled["first"]["int8"]) == 11


def test_full_size_kernels_access_wide_and_spill_nothing() -> None:
    for name, kernel in _compiled(90)["kernels"].items():
        if not name.startswith("full") or PRODUCT in name:
            continue
        few = next((most for part, most in NARROW.items() if part in name), 0)
        assert len(kernel["narrow"]) <= few, name
        assert kernel["wide"] >= 2, name
        assert kernel["spilled"] == 0, name


def test_kernels_fit_into_shared_memory() -> None:
    shared = {name: kernel["shared"] for name, kernel in _compiled(90)["kernels"].items()}
    assert max(shared.values()) > 100 * 1024, "the product's tiles are not counted"
    assert {name: size for name, size in shared.items() if size > SHARED_MEMORY} == {}


def test_product_keeps_its_sums_in_registers() -> None:
    spilled = [kernel["spilled"] for name, kernel in _compiled(90)["kernels"].items() if PRODUCT in name]
    assert len(spilled) >= 2
    assert set(spilled) == {0}


def test_vae_kernels_access_wide_and_spill_nothing() -> None:
    for name, kernel in _compiled(90)["kernels"].items():
        if not name.startswith("vae"):
            continue
        assert kernel["spilled"] == 0, name
        if "_combine" not in name:  # which reads few numbers
            assert kernel["wide"] >= 2, name
