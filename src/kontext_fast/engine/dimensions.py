"""The shape of a FLUX transformer as plain numbers, known without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """Everything that decides what a step costs, beside the numbers of tokens."""

    double_blocks: int
    single_blocks: int
    heads: int
    head_dim: int
    mlp_ratio: int = 4
    latent_channels: int
    """Channels of one image token, in and out."""
    text_channels: int
    pooled_channels: int

    @property
    def width(self) -> int:
        """W: channels of a token inside the transformer."""
        return self.heads * self.head_dim

    @property
    def mlp_width(self) -> int:
        """M: hidden channels of an MLP."""
        return self.mlp_ratio * self.width

    @classmethod
    def of(cls, transformer: Any) -> Dimensions:
        """Of a diffusers `FluxTransformer2DModel`."""
        config = transformer.config
        return cls(
            double_blocks=len(transformer.transformer_blocks),
            single_blocks=len(transformer.single_transformer_blocks),
            heads=config.num_attention_heads,
            head_dim=config.attention_head_dim,
            latent_channels=config.in_channels,
            text_channels=config.joint_attention_dim,
            pooled_channels=config.pooled_projection_dim,
        )


FLUX_KONTEXT_DEV = Dimensions(
    double_blocks=19,
    single_blocks=38,
    heads=24,
    head_dim=128,
    latent_channels=64,
    text_channels=4096,
    pooled_channels=768,
)
"""The full-size architecture, FLUX.1-Kontext-dev."""
