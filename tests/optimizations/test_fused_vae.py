"""The VAE's norms and activations in one operation: all of them, and with the kernel the numbers they had."""

from __future__ import annotations

import importlib
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.techniques import fused_vae
from kontext_fast.optimizations.techniques.fused_vae import ChannelsLast, FusedVae, _has_kernels
from kontext_fast.pipeline.device import Machine
from tests.pipelines import render, small_pipeline

CHOSEN = (ChannelsLast(), FusedVae())


@pytest.fixture
def pipe() -> Any:
    return small_pipeline()


@pytest.fixture
def with_small_vae(pipe: Any) -> Any:
    """Of two widths: the interpreter takes a tenth of a second for each norm, and longer for wide ones."""
    torch.manual_seed(0)
    pipe.vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    return pipe


def _there_and_back(pipe: Any, sides: tuple[int, int] = (16, 24)) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.rand(1, 3, *sides, generator=torch.Generator().manual_seed(0)) * 2 - 1
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
        assert acceleration.facts["fused_vae"]["kernel"] == "portable"
        # Everything else runs as without it.
        kinds = {type(module) for module in pipe.vae.modules() if "forward" in vars(module)}
        assert kinds == {torch.nn.GroupNorm, torch.nn.SiLU}


def test_norms_run_in_a_kernel_where_there_is_one(pipe: Any, kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_vae, "_fused", lambda norm, x: (norm, x))
    norm = pipe.vae.decoder.conv_norm_out
    with accelerate(pipe, CHOSEN, quiet=True):
        assert norm.forward("image") == (norm, "image")


def test_vae_with_the_kernels_equals_the_plain_vae(
    with_small_vae: Any, kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, sides = with_small_vae, (4, 6)
    expected = _there_and_back(pipe, sides)
    ran = []
    for run in (kernels.add_bias, kernels.double_sides, kernels.softmax):
        monkeypatch.setattr(kernels, run.__name__, lambda *args, run=run: ran.append((run, *args)) or run(*args))
    monkeypatch.setattr(fused_vae, "_SCORES", 4)  # a few rows of scores at a time
    with accelerate(pipe, CHOSEN, quiet=True) as acceleration:
        assert acceleration.facts["fused_vae"]["kernel"] == "fused"
        results = _there_and_back(pipe, sides)
        blocks = [part for part in pipe.vae.modules() if isinstance(part, ResnetBlock2D)]
        convolutions = [part for part in pipe.vae.modules() if isinstance(part, torch.nn.Conv2d)]
        names = Counter(run.__name__ for run, *_ in ran)
        residuals = [args for run, *args in ran if run.__name__ == "add_bias" and args[2] is not None]
    assert names["add_bias"] == len(convolutions)
    assert len(residuals) == len(blocks)
    assert names["double_sides"] == sum(isinstance(part, Upsample2D) for part in pipe.vae.modules()) > 0
    assert names["softmax"] > 2
    assert len(blocks) > 4
    for result, one in zip(results, expected, strict=True):
        torch.testing.assert_close(result, one, rtol=1e-3, atol=1e-4)
    for result, one in zip(_there_and_back(pipe, sides), expected, strict=True):
        assert torch.equal(result, one)


def test_biases_residuals_and_doubling_are_exact(pipe: Any, kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, where a rounding less would show; with the norms and the attention of PyTorch."""
    pipe.vae.to(torch.bfloat16)
    plain, layout = fused_vae._plain, {"memory_format": torch.channels_last}
    monkeypatch.setattr(fused_vae, "_fused", lambda norm, x: plain(norm, x.contiguous(**layout)).contiguous(**layout))
    monkeypatch.setattr(fused_vae, "_attended", lambda original, args, kwargs: original(*args, **kwargs))
    image = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)).bfloat16() * 2 - 1

    def there_and_back() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            latents = pipe.vae.encode(image).latent_dist.mode()
            return latents, pipe.vae.decode(latents).sample

    without_bias = torch.nn.functional.conv2d

    def then_bias(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *how: Any) -> torch.Tensor:
        result = without_bias(x.contiguous(**layout), weight, None, *how).contiguous(**layout)
        return result if bias is None else result.add_(bias[:, None, None])

    monkeypatch.setattr(torch.nn.functional, "conv2d", then_bias)  # as cuDNN's convolution does
    with accelerate(pipe, CHOSEN, quiet=True):
        fused = there_and_back()
    monkeypatch.setattr(fused_vae, "_streams", lambda _: ())
    with accelerate(pipe, CHOSEN, quiet=True):
        for result, one in zip(fused, there_and_back(), strict=True):
            assert torch.equal(result, one)


def test_precompile_calls_cover_every_kernel_of_an_edit(
    with_small_vae: Any, kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, launched = with_small_vae, set[Any]()
    norms = importlib.import_module("kontext_fast.engine.kernels.group_norm_silu")

    def noting(run: Any) -> Any:
        def note(x: torch.Tensor, *args: Any) -> Any:
            constants = args[:1] if run.__name__ == "group_norm_silu" else [len(args)]
            channels = None if run.__name__ == "softmax" else x.shape[1]
            launched.add((run.__name__, channels, *constants, x.dtype))
            return run(x, *args)

        return note

    monkeypatch.setattr(norms, "group_norm_silu", noting(norms.group_norm_silu))
    for name in ("add_bias", "double_sides", "softmax"):
        monkeypatch.setattr(kernels, name, noting(getattr(kernels, name)))
    for launch in fused_vae._precompile_calls(pipe.vae, torch.device("cpu")):
        launch()
    first, launched = launched, set()
    with accelerate(pipe, [ChannelsLast(), FusedVae()], quiet=True):
        launched.clear()
        _there_and_back(pipe, (4, 6))
    assert launched <= first
    assert len(launched) > 6


def test_hook_on_a_convolution_is_refused(pipe: Any, kernels: Any) -> None:
    with accelerate(pipe, CHOSEN, quiet=True):
        handle = pipe.vae.decoder.mid_block.resnets[0].conv2.register_forward_hook(lambda *_: None)
        with pytest.raises(
            InvalidInput,
            match=r"^vae\.decoder\.mid_block\.resnets\.0\.conv2 has a forward hook, which fused_vae would ignore",
        ):
            render(pipe)
        handle.remove()


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
    assert FusedVae().refusal(machine) == (
        "fused_vae on a GPU needs Triton; run `pip install triton` or leave fused_vae out"
    )


def test_label_says_that_a_cpu_gains_nothing() -> None:
    cpu = Machine.detect("cpu")
    assert FusedVae().label_on(cpu) == "fused_vae: plain PyTorch on a CPU, no speed"
    assert FusedVae().label_on(replace(cpu, device="cuda")) is None
    assert FusedVae().refusal(cpu) is None
    assert "not supported on mps" in str(FusedVae().refusal(replace(cpu, device="mps")))
    assert [_has_kernels(torch.device(name)) for name in ("cuda:1", "cpu")] == [True, False]
    assert "compute capability 8.0" in str(FusedVae().refusal(replace(cpu, device="cuda", capability=(7, 5))))
    assert FusedVae().refusal(replace(cpu, device="cuda", capability=(8, 0))) is None


def test_hook_that_would_be_ignored_is_refused_from_the_start(pipe: Any) -> None:
    pipe.vae.decoder.conv_norm_out.register_forward_hook(lambda *_: None)
    with pytest.raises(InvalidInput, match=r"^vae\.decoder\.conv_norm_out has a forward hook, which fused_vae"):
        accelerate(pipe, CHOSEN, quiet=True)


def test_pipeline_without_a_vae_has_nothing_to_fuse(pipe: Any, kernels: Any) -> None:
    pipe.vae = None
    with accelerate(pipe, CHOSEN, quiet=True) as acceleration:
        assert acceleration.facts["fused_vae"] == {"norms": 0, "kernel": "fused"}


def test_forward_that_was_taken_off_is_refused_at_the_next_call(pipe: Any) -> None:
    with accelerate(pipe, CHOSEN, quiet=True):
        del pipe.vae.decoder.conv_norm_out.forward
        with pytest.raises(InvalidInput, match=r"forward that fused_vae gave to vae\.decoder\.conv_norm_out was taken"):
            render(pipe)
