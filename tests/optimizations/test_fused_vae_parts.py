"""Parts of a VAE that `fused_vae` runs itself: which they are, and that they compute what diffusers does."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.techniques import fused_vae
from kontext_fast.optimizations.techniques.fused_vae import (
    FusedVae,
    _attended,
    _biased,
    _block,
    _doubled,
    _fused,
    _pairs,
    _plain,
    _streams,
)


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
        (_attended, attending, (x,), {"attention_mask": torch.tensor([[[0.0, 0.0, -1e9, 0.0]]])}),
        (_attended, masked, (x,), {}),
    ]
    for replacement, part, args, kwargs in calls:
        assert torch.equal(replacement(part.forward, args, kwargs), part.forward(*args, **kwargs))


def forward_of(part: torch.nn.Module, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Of diffusers, with weights that are not those of a norm that changes nothing."""
    for weight in part.parameters():
        torch.nn.init.normal_(weight)
    return torch.as_tensor(part(x, *args, **kwargs))


def pixels(channels: int = 4) -> torch.Tensor:
    return torch.randn(2, channels, 2, 3, generator=torch.Generator().manual_seed(0)) + 1


@pytest.mark.parametrize(
    ("replacement", "part", "others"),
    [
        (_biased, torch.nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), ()),
        (_biased, torch.nn.Conv2d(4, 6, 2, padding=2, dilation=3), ()),
        (_block, residual(), (None,)),
        (_block, residual(out_channels=8), (None,)),
        (_doubled, Upsample2D(4, use_conv=True), ()),
        (_doubled, Upsample2D(4, use_conv=True, name="Conv2d_0"), (None,)),
        (_attended, attention(), ()),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@torch.no_grad()
def test_part_computes_with_kernels_what_diffusers_does(
    kernels: Any, replacement: Any, part: torch.nn.Module, others: tuple[Any, ...]
) -> None:
    x = pixels()
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.contiguous(memory_format=layout)
        expected = forward_of(part, given, *others)
        torch.testing.assert_close(replacement(part.forward, (given, *others), {}), expected)
        assert torch.equal(given, x)
    if replacement is not _biased:
        name = {_block: "temb", _doubled: "output_size", _attended: "attention_mask"}[replacement]
        torch.testing.assert_close(replacement(part.forward, (x,), {name: None}), expected)


@torch.no_grad()
def test_norm_and_activation_compute_together_what_they_do_apart(kernels: Any) -> None:
    norm, x = torch.nn.GroupNorm(2, 4, eps=0.5), pixels()
    expected = torch.nn.functional.silu(forward_of(norm, x))
    assert torch.equal(_plain(norm, x), expected)
    torch.testing.assert_close(_fused(norm, x), expected)


@torch.no_grad()
def test_scores_of_attention_are_in_memory_some_rows_at_a_time(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    part, x, shapes = attention(), pixels(), []
    monkeypatch.setattr(
        kernels,
        "softmax",
        lambda scores, *how, run=kernels.softmax: (shapes.append(scores.shape), run(scores, *how))[1],
    )
    expected = forward_of(part, x)
    for most, launches in ((24, [(2, 2, 6)] * 3), (59, [(2, 4, 6), (2, 2, 6)]), (3, [(2, 1, 6)] * 6)):
        monkeypatch.setattr(fused_vae, "_SCORES", most)
        torch.testing.assert_close(_attended(part.forward, (x,), {}), expected)
        assert shapes == launches
        shapes.clear()


@torch.no_grad()
def test_scores_of_half_precision_are_kept_in_float32(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype | None] = []

    def bmm(a: torch.Tensor, b: torch.Tensor, *, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        """As on a GPU, on which alone PyTorch has that argument."""
        assert a.dtype == b.dtype
        asked.append(out_dtype)
        return (a.float() @ b.float()).to(out_dtype or a.dtype)

    part, x = attention().bfloat16(), pixels().bfloat16()
    expected = forward_of(part, x)
    monkeypatch.setattr(torch, "bmm", bmm)
    torch.testing.assert_close(_attended(part.forward, (x,), {}), expected, rtol=0.02, atol=0.02)
    assert asked == [torch.float32, None]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Of kernels, none of which runs: names and arguments, and of tensors all that a kernel is compiled for."""
    launches: list[tuple[Any, ...]] = []

    def described(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        innermost = value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)
        return value.ndim, value.shape[-3 if value.ndim == 4 else -1], value.dtype, value.device.type, innermost

    for module, names in (
        ("between_convolutions", ("add_bias", "double_sides", "softmax")),
        ("group_norm_silu", ("group_norm_silu",)),
    ):
        kernels = importlib.import_module(f"kontext_fast.engine.kernels.{module}")
        for name in names:
            monkeypatch.setattr(kernels, name, lambda *args, name=name: launches.append((name, *map(described, args))))
    return launches


def test_kernels_are_compiled_ahead_for_every_width_on_the_device(
    launches: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the weights may still wait in host memory."""
    monkeypatch.setattr(fused_vae, "_has_kernels", lambda device: device.type == "meta")
    parts = [residual(), residual(out_channels=8), residual(), Upsample2D(4, use_conv=True), attention()]
    vae = torch.nn.ModuleList(parts).to(torch.bfloat16)
    ahead = {
        name: FusedVae().precompile_calls(SimpleNamespace(vae=vae, _execution_device=torch.device(name)))
        for name in ("cpu", "meta")
    }
    assert not ahead["cpu"]
    for launch in ahead["meta"]:
        launch()

    def image(width: int) -> tuple[Any, ...]:
        return 4, width, torch.bfloat16, "meta", True

    def vector(width: int) -> tuple[Any, ...]:
        return 1, width, torch.bfloat16, "meta", False

    scores = [(3, pixels, torch.float32, "meta", False) for pixels in (16, 12)]
    expected = [
        *(("group_norm_silu", image(width), 2, vector(width), vector(width), 1e-6) for width in (4, 8)),
        *(("add_bias", image(width), vector(width), other) for width in (4, 8) for other in (None, image(width))),
        ("double_sides", image(4)),
        *(("softmax", each, 1.0, torch.bfloat16) for each in scores),
    ]
    assert sorted(launches, key=str) == sorted(expected, key=str)
    assert not FusedVae().precompile_calls(SimpleNamespace(vae=None, _execution_device=torch.device("meta")))
