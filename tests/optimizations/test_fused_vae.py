"""The VAE's norms and activations in one operation: all of them, and with the kernel the numbers they had."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.techniques import fused_vae
from kontext_fast.optimizations.techniques.channels_last import ChannelsLast
from kontext_fast.optimizations.techniques.fused_vae import FusedVae
from kontext_fast.pipeline.device import Machine
from tests import needs
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


def test_norms_and_activations_no_longer_run_alone(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_vae_with_the_kernel_equals_the_plain_vae(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason=needs.TRITON)
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    expected = _there_and_back(pipe)
    monkeypatch.setattr(fused_vae, "_plain", fused_vae._fused)
    with accelerate(pipe, CHOSEN, quiet=True):
        results = _there_and_back(pipe)
    for result, one in zip(results, expected, strict=True):
        torch.testing.assert_close(result, one, rtol=1e-3, atol=1e-4)


def test_precompile_calls_cover_every_width(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = [norm for norm, _ in fused_vae._pairs(pipe.vae)]
    launched: list[tuple[int, int, torch.dtype]] = []
    pytest.importorskip("triton", reason=needs.TRITON)
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    kernel = importlib.import_module("kontext_fast.engine.kernels.group_norm_silu")
    monkeypatch.setattr(
        kernel, "group_norm_silu", lambda x, groups, *_: launched.append((x.shape[1], groups, x.dtype)) or x
    )
    for launch in fused_vae._precompile_calls(norms, torch.device("cpu")):
        launch()
    first = sorted(map(str, launched))
    launched.clear()
    for norm in norms:
        fused_vae._fused(norm, torch.zeros(1, norm.num_channels, 4, 4))
    assert first == sorted(set(map(str, launched)))
    assert len(first) > 1


def test_other_vae_is_refused(pipe: Any) -> None:
    pipe.vae.decoder.conv_act = torch.nn.GELU()
    with pytest.raises(InvalidInput, match="other norms"):
        accelerate(pipe, CHOSEN, quiet=True)


def test_gpu_without_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kontext_fast.engine.dispatch.find_spec", lambda _: None)
    machine = Machine(
        device="cuda", gpu="x", capability=(9, 0), memory_bytes=1, cxx=None, cc=None, triton=False, torch="2.11",
        platform="linux-x86_64",
    )  # fmt: skip
    assert "pip install triton" in str(FusedVae().refusal(machine))
