"""The architecture of `tiny`: FLUX.1-Kontext's own classes at toy size, and the tokenizers for its small language.

Everything is built here and nowhere else, so that the folder that ships is a plain diffusers folder and needs no
code of ours to load.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

IMAGE_SIZE = 128
TEXT_TOKENS = 48
LATENT_CHANNELS = 16
CLIP_WIDTH = 128
T5_WIDTH = 128


def build_transformer() -> FluxTransformer2DModel:
    """4 double and 8 single blocks of width 160: 7.1 M parameters.

    Modulations and the last projection start at zero, so that every block starts as the identity (adaLN-Zero,
    Peebles and Xie, arXiv 2212.09748).
    """
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=4,
        num_single_layers=8,
        attention_head_dim=32,
        num_attention_heads=5,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )
    modulations = [
        module.linear for name, module in transformer.named_modules() if hasattr(module, "linear") and "norm" in name
    ]
    for layer in (*modulations, transformer.proj_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return transformer


def build_vae() -> AutoencoderKL:
    """FLUX's autoencoder shape: 8x smaller, 16 latent channels, no quantization convolutions."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(24, 40, 56, 72),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=True,
        shift_factor=0.0,
        scaling_factor=1.0,
    )


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """FLUX.1's schedule, dynamic shifting included."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def build_t5(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    """Two layers of width 128; trained together with the transformer."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=T5_WIDTH,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A contrastive pair; its text half becomes the pipeline's `text_encoder`."""
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=CLIP_WIDTH,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_TOKENS,
        projection_dim=CLIP_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=CLIP_WIDTH,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=16,
        projection_dim=CLIP_WIDTH,
    )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=CLIP_WIDTH))


def build_t5_tokenizer(sentences: Iterable[str]) -> T5TokenizerFast:
    """One piece a word of the small language, single characters for anything else."""
    words = Counter(word for sentence in sentences for word in sentence.replace(",", " ,").split())
    total = sum(words.values())
    pieces: list[tuple[str, float]] = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    pieces += [(f"▁{word}", -8.0 + count / total) for word, count in sorted(words.items())]
    pieces += [(chr(code), -12.0) for code in range(33, 127)]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=TEXT_TOKENS)


def build_clip_tokenizer(sentences: Iterable[str]) -> CLIPTokenizer:
    """A byte-level BPE in CLIP's format: lower case, words ending in `</w>`."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "removed"),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1024, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(sentences, trainer)
    trained = json.loads(bpe.to_str())["model"]
    tokens = alphabet + [f"{letter}</w>" for letter in alphabet]
    merges = [tuple(pair) for pair in trained["merges"]]
    tokens += ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TEXT_TOKENS)


def parameter_count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
