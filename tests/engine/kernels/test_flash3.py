"""FlashAttention-3: never chosen silently, refused where it cannot run, called in its own layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kontext_fast.engine.attention.flash3 import FLASH3, FLASH3_FP8, _function, installed_interface
from kontext_fast.engine.attention.pytorch import CUDNN, MATH, NATIVE
from kontext_fast.engine.dispatch import fastest_attention, refusal
from kontext_fast.engine.ops import quantize_joint
from kontext_fast.optimizations.base import Effect
from kontext_fast.optimizations.presets import resolve
from kontext_fast.optimizations.techniques.engine import Engine
from kontext_fast.pipeline.device import Machine
from tests import needs
from tests.engine.kernels.oracle import DEVICE

KERNELS = (FLASH3, FLASH3_FP8)

STAND_IN = """
import torch

def flash_attn_func(query, key, value, q_descale=None, k_descale=None, v_descale=None):
    batch, rows, heads, channels = query.shape
    if q_descale is not None:
        scaled = ((query, q_descale), (key, k_descale), (value, v_descale))
        assert all(one.dtype == torch.float8_e4m3fn and scale.shape == (batch, heads) for one, scale in scaled)
        query, key, value = (one.float() * scale[:, None, :, None] for one, scale in scaled)
    weights = torch.einsum("brhd,bshd->bhrs", query, key) / channels**0.5
    return torch.einsum("bhrs,bshd->brhd", weights.softmax(-1), value), weights.logsumexp(-1)
"""
"""Takes and gives what the package does, tokens before heads, log-sum-exp beside the result."""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "fa3_fwd_interface.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    _function.cache_clear()
    yield
    _function.cache_clear()


@pytest.mark.skipif(installed_interface() is not None, reason="needs no FlashAttention-3: pip uninstall fa3-fwd")
def test_missing_package_is_refused_with_its_name() -> None:
    for kernel in KERNELS:
        reason = refusal("cuda", (9, 0), "bf16", kernel.name)
        assert f"{kernel.name} needs FlashAttention-3; run `pip install fa3-fwd`" in str(reason)


def test_other_gpus_than_hopper_are_refused(installed: None) -> None:
    for kernel in KERNELS:
        for capability in ((8, 0), (8, 9), (10, 0), (12, 0)):
            assert f"{kernel.name} runs on Hopper" in str(refusal("cuda", capability, "bf16", kernel.name))
        assert kernel.refusal is not None
        assert kernel.refusal((9, 0)) is None
        assert "use attention=auto" in str(refusal("cpu", None, "bf16", kernel.name))


def test_float8_needs_triton_too(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kontext_fast.engine.dispatch.has_fused_kernels", lambda: False)
    assert refusal("cuda", (9, 0), "bf16", "flash3") is None
    assert "pip install triton" in str(refusal("cuda", (9, 0), "bf16", "flash3_fp8"))


def test_package_is_called_with_tokens_before_heads(installed: None) -> None:
    query, key, value = (torch.randn(2, tokens, 3, 8) for tokens in (5, 7, 7))
    expected = MATH.run(query, key, value)
    torch.testing.assert_close(FLASH3.run(query, key, value), expected, rtol=1e-5, atol=1e-5)


def _in_float8(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    joint = quantize_joint(query, key, value)
    assert joint.scales is not None
    return joint.query, joint.key, joint.value, joint.scales


@pytest.mark.parametrize("magnified", [1.0, 1000.0])
def test_float8_is_exact_far_below_its_scale(installed: None, magnified: float) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, tokens, 3, 16, generator=generator).to(DEVICE) for tokens in (50, 70, 70))
    # The scale is that of the larger head, a thousand times too large for the others.
    value[:, :, 1] *= magnified
    exact, rounded = MATH.run(query, key, value).unbind(2), FLASH3_FP8.run(*_in_float8(query, key, value)).unbind(2)
    for one, other in zip(rounded, exact, strict=True):
        assert 0.005 < (one - other).norm() / other.norm() < 0.06


def test_auto_takes_flash3_where_it_runs(installed: None) -> None:
    assert fastest_attention("cuda", (9, 0)) is FLASH3
    assert fastest_attention("cuda", (8, 9)) is CUDNN
    assert fastest_attention("cuda", None) is CUDNN
    assert fastest_attention("cpu", None) is NATIVE


def test_a_plan_names_the_kernel_of_auto(installed: None) -> None:
    here = Machine.detect("cpu")
    assert resolve([Engine()], here).applied[0].parameters["attention"] == "native"
    # Of a card that is not here no kernel is built, so that nothing refuses for lack of a compiler.
    for capability, name in (((9, 0), "flash3"), ((8, 9), "cudnn")):
        card = replace(here, device="cuda", gpu="a card", capability=capability)
        assert Engine().on_machine(card).attention == name


def test_auto_is_whatever_rounds_only() -> None:
    ran = Engine(attention="cudnn").parameters()
    assert Engine().is_what_ran(ran)
    assert Engine().is_what_ran({**ran, "attention": "default"})
    assert not Engine().is_what_ran({**ran, "attention": "flash3_fp8"})
    assert not Engine().is_what_ran({**ran, "precision": "fp8"})
    assert not Engine(attention="math").is_what_ran(ran)
    assert Engine(attention="default") == Engine()


def test_float8_makes_the_engine_lossy() -> None:
    assert Engine(attention="flash3_fp8").effect == Effect.LOSSY
    assert Engine(attention="flash3").effect == Effect.NUMERIC
    assert Engine().effect == Effect.NUMERIC


@needs.gpu
@needs.flash_attention_3
def test_flash3_agrees_with_exact_attention_on_a_gpu() -> None:
    query, key, value = (torch.randn(1, tokens, 24, 128, device="cuda").bfloat16() for tokens in (4608, 8704, 8704))
    expected = CUDNN.run(query, key, value).float()
    results = FLASH3.run(query, key, value), FLASH3_FP8.run(*_in_float8(query, key, value))
    for result, allowed in zip(results, (0.01, 0.06), strict=True):
        assert (result.float() - expected).norm() / expected.norm() < allowed
