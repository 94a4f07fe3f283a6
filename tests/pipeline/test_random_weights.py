"""The builder of `random` on a small architecture; on the full one it differs in nothing but dimensions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kontext_fast.errors import OutOfMemory, Refused
from kontext_fast.pipeline.edit import EditRequest, edit
from kontext_fast.pipeline.folder import TINY_FOLDER
from kontext_fast.pipeline.load import load
from kontext_fast.pipeline.random_weights import RANDOM_NEEDS_GIB, Architecture, build_random
from tests import needs

SMALL = Architecture(
    double_blocks=3,
    single_blocks=6,
    heads=4,
    head_dim=32,
    rope_axes=(8, 12, 12),
    vae_channels=(32, 64, 64, 64),
    native_size=64,
    clip_width=64,
    clip_layers=4,
    clip_heads=4,
    clip_vocabulary=1000,
    t5_width=128,
    t5_inner=320,
    t5_layers=6,
    t5_heads=4,
    t5_head_dim=32,
    t5_vocabulary=500,
)


def build(architecture: Architecture = SMALL, seed: int = 0) -> Any:
    device = torch.device("cpu")
    return build_random(architecture, tokenizers=TINY_FOLDER, device=device, dtype=torch.bfloat16, seed=seed)


def test_defaults_are_flux_1_kontext_dev() -> None:
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    real = Architecture()
    with torch.device("meta"):
        counts = [
            sum(parameter.numel() for parameter in model.parameters())
            for model in (
                FluxTransformer2DModel(**real.transformer()),
                AutoencoderKL(**real.vae()),
                CLIPTextModel(CLIPTextConfig(**real.clip())),
                T5EncoderModel(T5Config(**real.t5())),
            )
        ]
    assert counts == [11_901_408_320, 83_819_683, 123_060_480, 4_762_310_656]
    assert 2 * sum(counts) < (RANDOM_NEEDS_GIB - 2) * 2**30
    assert sum(real.rope_axes) == real.head_dim


def test_edit_is_finite_and_shows_something_in_bfloat16() -> None:
    pipe = build()
    spreads: list[float] = []
    hook = pipe.transformer.register_forward_hook(lambda _m, _i, output: spreads.append(output[0].float().std().item()))
    images = pipe(
        prompt="make it red",
        image=torch.rand(1, 3, 64, 64),
        height=64,
        width=64,
        max_area=64 * 64,
        _auto_resize=False,
        num_inference_steps=3,
        output_type="pt",
    ).images.float()
    hook.remove()
    assert len(spreads) == 3
    assert all(0.3 < spread < 3 for spread in spreads)
    assert images.isfinite().all()
    assert images.std() > 0.1
    assert {model.dtype for model in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)} == {
        torch.bfloat16
    }


def test_texts_have_real_lengths_and_an_effect() -> None:
    pipe = build()
    (first, pooled, _), (second, other_pooled, _) = (
        pipe.encode_prompt(text, max_sequence_length=512) for text in ("make it red", "remove the star")
    )
    assert first.shape == (1, 512, 128)
    assert pipe.tokenizer_max_length == 77
    for left, right in ((first, second), (pooled, other_pooled)):
        assert left.isfinite().all()
        assert 0.3 < left.float().std() < 3
        assert (left - right).abs().max() > 0.1


def test_image_and_the_instruction_reach_the_output(picture: Any) -> None:
    pipe = build()
    base = edit(pipe, EditRequest("make it red", picture, steps=2, seed=0))
    assert base.size.text_tokens == 512
    for changed in (
        EditRequest("remove the star", picture, steps=2, seed=0),
        EditRequest("make it red", picture.rotate(90), steps=2, seed=0),
        EditRequest("make it red", picture, steps=2, seed=1),
    ):
        assert edit(pipe, changed).images[0].tobytes() != base.images[0].tobytes()


def test_one_seed_gives_one_set_of_weights() -> None:
    first, again, other = (build(seed=seed).transformer.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["proj_out.weight"], other["proj_out.weight"])


def test_every_parameter_is_initialized() -> None:
    pipe = build()
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        for parameter_name, parameter in getattr(pipe, name).named_parameters():
            assert parameter.device.type == "cpu"
            assert not parameter.requires_grad
            assert parameter.isfinite().all(), parameter_name
            assert parameter.abs().max() < 10, parameter_name
    assert pipe.text_encoder.embeddings.position_ids.tolist() == [list(range(77))]
    shared = pipe.text_encoder_2.shared.weight
    assert pipe.text_encoder_2.encoder.embed_tokens.weight.data_ptr() == shared.data_ptr()


def test_full_size_is_refused_without_a_gpu() -> None:
    with pytest.raises(Refused, match=r"34 GiB .* use tiny"):
        load("random", device="cpu")


def test_full_size_is_refused_on_a_full_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (10 * 2**30, 80 * 2**30))
    with pytest.raises(OutOfMemory, match=r"34 GiB .* has 10\.0"):
        load("random", device="cuda")


@needs.gpu
def test_full_size_fits_the_memory_it_requires() -> None:
    torch.cuda.reset_peak_memory_stats()
    loaded = load("random")
    result = edit(loaded.pipe, EditRequest("make it red", steps=2, seed=0))
    assert loaded.facts.transformer_parameters == 11_901_408_320
    assert result.images[0].size == (1024, 1024)
    assert len(result.images[0].getcolors(maxcolors=2**21) or ()) > 1000
    assert torch.cuda.max_memory_allocated() < RANDOM_NEEDS_GIB * 2**30
