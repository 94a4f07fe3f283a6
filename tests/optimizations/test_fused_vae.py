"""The VAE's norms and activations in one operation: all of them, and with the kernel the numbers they had."""

from __future__ import annotations

import importlib
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.techniques import fused_vae
from kontext_fast.optimizations.techniques.fused_vae import (
    ChannelsLast,
    FusedVae,
    _attended,
    _block,
    _doubled,
    _has_kernels,
    _pairs,
    _streams,
)
from kontext_fast.pipeline.device import Machine
from tests import needs
from tests.engine.kernels.conftest import _converted
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
        with pytest.raises(InvalidInput, match="conv2 has a forward hook"):
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
    assert "pip install triton" in str(FusedVae().refusal(machine))


def residual(**options: Any) -> ResnetBlock2D:
    """As in the VAE of FLUX, but for `options`; two channels to each group."""
    return ResnetBlock2D(**{"in_channels": 4, "groups": 2, "temb_channels": None, **options})


def attention(**options: Any) -> Attention:
    usual = {"query_dim": 4, "heads": 1, "dim_head": 4, "norm_num_groups": 2, "residual_connection": True}
    return Attention(**{**usual, "bias": True, **options})


@pytest.mark.parametrize(
    ("part", "replacement"),
    [
        (torch.nn.Conv2d(2, 2, 1), "_biased"),
        (torch.nn.Conv2d(2, 2, 1, bias=False), None),
        (torch.nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), None),
        (residual(), "_block"),
        (residual(out_channels=8), "_block"),
        (residual(output_scale_factor=2.0), None),
        (residual(out_channels=8, conv_shortcut_bias=False), None),
        (Upsample2D(4, use_conv=True), "_doubled"),
        (Upsample2D(4, use_conv=False), None),
        (Upsample2D(4, use_conv=True, interpolate=False), None),
        (Upsample2D(4, use_conv_transpose=True), None),
        (Upsample2D(4, use_conv=True, norm_type="ln_norm"), None),
        (attention(), "_attended"),
        (attention(heads=2), None),
        (attention(residual_connection=False), None),
        (attention(rescale_output_factor=2.0), None),
        (attention(norm_num_groups=None), None),
        (attention(qk_norm="layer_norm"), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_parts_are_fused_where_they_are_those_of_flux(part: torch.nn.Module, replacement: str | None) -> None:
    found = [fused.__name__ for module, fused in _streams(torch.nn.ModuleList([part])) if module is part]
    assert found == ([] if replacement is None else [replacement])


@pytest.mark.parametrize("part", [residual(temb_channels=8), residual(up=True), residual(down=True),
                                  residual(non_linearity="gelu")])  # fmt: skip
def test_block_whose_activation_is_not_between_norm_and_convolution_alone_is_refused(part: Any) -> None:
    assert len(list(_pairs(torch.nn.ModuleList([residual()])))) == 2
    with pytest.raises(InvalidInput) as caught:
        list(_pairs(torch.nn.ModuleList([part])))
    assert str(caught.value) == (
        "The VAE has other norms or activations than that of FLUX; leave fused_vae out of the preset."
    )


def test_norm_without_weights_is_refused() -> None:
    part = residual()
    part.norm2 = torch.nn.GroupNorm(2, 4, affine=False)
    with pytest.raises(InvalidInput, match="other norms or activations"):
        list(_pairs(torch.nn.ModuleList([part])))


def test_unusual_calls_of_parts_run_as_diffusers_has_them() -> None:
    """With a time, another size than twice that, or text: nothing of it is fused, so that no kernel is needed."""
    x, time, text = torch.rand(1, 4, 2, 2), torch.rand(1, 8), torch.rand(1, 3, 4)
    timed, doubling, attending = residual(temb_channels=8), Upsample2D(4, use_conv=True), attention()
    masked = attention()
    masked.set_processor(type("Another", (type(masked.processor),), {})())
    calls: list[tuple[Any, Any, tuple[Any, ...], dict[str, Any]]] = [
        (_block, timed, (x, time), {}),
        (_block, timed, (x,), {"temb": time}),
        (_doubled, doubling, (x, (3, 5)), {}),
        (_doubled, doubling, (x,), {"output_size": (3, 5)}),
        (_attended, attending, (x, text), {}),
        (_attended, attending, (x,), {"attention_mask": torch.zeros(1, 1, 4)}),
        (_attended, masked, (x,), {}),
    ]
    for replacement, part, args, kwargs in calls:
        assert torch.equal(replacement(part.forward, args, kwargs), part.forward(*args, **kwargs))


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
    with pytest.raises(InvalidInput, match="conv_norm_out has a forward hook, which fused_vae would ignore"):
        accelerate(pipe, CHOSEN, quiet=True)
