"""FlashAttention-3: never chosen silently, refused where it cannot run, called in its own layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kontext_fast.engine import flash3
from kontext_fast.engine.attention import attention, resolve_kernel
from kontext_fast.engine.select import refusal

STAND_IN = """
import torch

def flash_attn_func(query, key, value):
    batch, rows, heads, channels = query.shape
    weights = torch.einsum("brhd,bshd->bhrs", query, key) / channels**0.5
    return torch.einsum("bhrs,bshd->brhd", weights.softmax(-1), value), weights.logsumexp(-1)
"""
"""Takes and gives what the package does, tokens before heads, log-sum-exp beside the result."""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "fa3_fwd_interface.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    flash3._function.cache_clear()
    yield
    flash3._function.cache_clear()


def test_no_device_gets_it_unasked() -> None:
    assert resolve_kernel("default", "cuda") == "cudnn"
    assert resolve_kernel("default", "cpu") == "native"


@pytest.mark.skipif(flash3.interface() is not None, reason="FlashAttention-3 is installed here")
def test_without_the_package_it_is_refused_with_its_name() -> None:
    assert "pip install fa3-fwd" in str(refusal("cuda", (9, 0), "bf16", "flash3"))


def test_with_the_package_it_needs_a_hopper_gpu(installed: None) -> None:
    for capability in ((8, 0), (8, 9), (10, 0), (12, 0)):
        assert "Hopper" in str(refusal("cuda", capability, "bf16", "flash3"))
    assert flash3.refusal((9, 0)) is None
    assert "use attention=default" in str(refusal("cpu", None, "bf16", "flash3"))


def test_it_is_called_with_tokens_before_heads(installed: None) -> None:
    query, key, value = (torch.randn(2, tokens, 3, 8) for tokens in (5, 7, 7))
    expected = attention("math", query, key, value)
    torch.testing.assert_close(attention("flash3", query, key, value), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(
    flash3.interface() is None or not torch.cuda.is_available(), reason="needs FlashAttention-3 and a GPU"
)
def test_it_agrees_with_exact_attention_on_a_gpu() -> None:
    query, key, value = (torch.randn(1, tokens, 24, 128, device="cuda").bfloat16() for tokens in (4608, 8704, 8704))
    result, expected = (attention(kernel, query, key, value).float() for kernel in ("flash3", "cudnn"))
    assert (result - expected).norm() / expected.norm() < 0.01
