"""The VAE's norms and activations in one operation: all of them, and with the kernel the numbers they had."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations import fused_vae
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.channels_last import ChannelsLast
from kontext_fast.optimizations.fused_vae import FusedVae
from kontext_fast.optimizations.machine import Machine
from tests.pipelines import small_pipeline

CHOSEN = (ChannelsLast(), FusedVae())


@pytest.fixture
def pipe() -> Any:
    return small_pipeline()


def _there_and_back(pipe: Any) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = pipe.vae.encode(image).latent_dist.mode()
        return latents, pipe.vae.decode(latents).sample


def test_no_norm_and_no_activation_runs_by_itself_any_more(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain = fused_vae._plain
    monkeypatch.setattr(fused_vae, "_plain", lambda norm, x: calls.append(norm) or plain(norm, x))
    with accelerate(pipe, CHOSEN, quiet=True) as acceleration:
        for module in pipe.vae.modules():
            if isinstance(module, torch.nn.SiLU):
                assert module(torch.tensor(-3.0)) == -3
        _there_and_back(pipe)
        assert len(calls) == acceleration.facts["fused_vae"]["norms"] > 10
        assert len({id(norm) for norm in calls}) == len(calls)


def test_with_the_kernel_in_it_the_numbers_are_the_same(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    expected = _there_and_back(pipe)
    monkeypatch.setattr(fused_vae, "_plain", fused_vae._fused)
    with accelerate(pipe, CHOSEN, quiet=True):
        results = _there_and_back(pipe)
    for result, one in zip(results, expected, strict=True):
        torch.testing.assert_close(result, one, rtol=1e-3, atol=1e-4)


def test_another_vae_is_refused(pipe: Any) -> None:
    pipe.vae.decoder.conv_act = torch.nn.GELU()
    with pytest.raises(InvalidInput, match="other norms"):
        accelerate(pipe, CHOSEN, quiet=True)


def test_a_gpu_without_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kontext_fast.engine.select.find_spec", lambda _: None)
    machine = Machine(
        device="cuda", gpu="x", capability=(9, 0), memory_bytes=1, cxx=None, cc=None, triton=False, torch="2.11",
        platform="linux-x86_64",
    )  # fmt: skip
    assert "pip install triton" in str(FusedVae().refusal(machine))
