"""The folder that ships: a plain diffusers pipeline in bf16, and the contrastive pair beside it for metrics."""

from __future__ import annotations

from pathlib import Path

import architecture
from clip import text_half
from diffusers import AutoencoderKL, FluxKontextPipeline, FluxTransformer2DModel
from stages import tokenizers
from transformers import CLIPModel, T5EncoderModel


def export(folder: Path) -> Path:
    """Writes `folder`/tiny from the finished parts and returns it."""
    clip_tokenizer, t5_tokenizer = tokenizers(folder)
    pipe = FluxKontextPipeline(
        scheduler=architecture.build_scheduler(),
        vae=AutoencoderKL.from_pretrained(folder / "vae").bfloat16(),
        text_encoder=text_half(folder).bfloat16(),
        tokenizer=clip_tokenizer,
        text_encoder_2=T5EncoderModel.from_pretrained(folder / "t5").bfloat16(),
        tokenizer_2=t5_tokenizer,
        transformer=FluxTransformer2DModel.from_pretrained(folder / "transformer").bfloat16(),
    )
    tiny = folder / "tiny"
    pipe.save_pretrained(tiny)
    CLIPModel.from_pretrained(folder / "clip").bfloat16().save_pretrained(tiny / "clip")
    for path in tiny.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # weights come out readable by their owner only
    return tiny
