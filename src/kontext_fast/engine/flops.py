"""The shape of a FLUX transformer as plain numbers, and the floating-point operations of a step, from shapes alone.

A product of [m, k] and [k, n] counts 2 m k n. Element-wise work and the modulations, which are computed once per
request, are left out: together under 0.1 % of the operations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kontext_fast.records.schema import StepKind


@dataclass(frozen=True)
class Flops:
    """FLOP, multiplications and additions both counted."""

    linear: float
    attention: float

    @property
    def total(self) -> float:
        return self.linear + self.attention

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.linear + other.linear, self.attention + other.attention)


@dataclass(frozen=True)
class Tokens:
    """Of one sample."""

    text: int
    image: int
    reference: int = 0

    @property
    def total(self) -> int:
        return self.text + self.image + self.reference


FULL_SIZE_EDIT = Tokens(text=512, image=4096, reference=4096)
"""A 1024x1024 edit of a 1024x1024 image."""


def step_work(dimensions: Dimensions, tokens: Tokens, kind: StepKind, *, tests_first_block: bool = False) -> Flops:
    """Of one pass of one sample through the engine, whose last single block computes keys, values and queries of all
    tokens and the rest of the image's. A skipped step is free, unless a cache runs the first block to decide."""
    if kind == "skipped" and not tests_first_block:
        return Flops(0.0, 0.0)
    total = tokens.total
    blocks = 1 if kind == "skipped" else dimensions.double_blocks + dimensions.single_blocks
    width, mlp, channels = dimensions.width, dimensions.mlp_width, dimensions.latent_channels
    # Both kinds of block: query, key and value, the output, and two layers of MLP.
    block = total * (4 * width * width + 2 * width * mlp)
    embedders = tokens.text * dimensions.text_channels * width + (total - tokens.text) * channels * width
    output = 0 if kind == "skipped" else tokens.image * width * channels
    without_output = 0 if kind == "skipped" or not dimensions.single_blocks else total - tokens.image
    unread = without_output * (width * width + 2 * width * mlp)
    return Flops(
        linear=2.0 * (blocks * block - unread + embedders + output),
        attention=4.0 * (blocks * total - without_output) * total * width,
    )


def request_work(
    dimensions: Dimensions, tokens: Tokens, kinds: Iterable[StepKind], *, tests_first_block: bool = False
) -> Flops:
    """Of all steps of one pass of one sample."""
    work = Flops(0.0, 0.0)
    for kind in kinds:
        work += step_work(dimensions, tokens, kind, tests_first_block=tests_first_block)
    return work


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """What decides the cost of a step, apart from the numbers of tokens."""

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
