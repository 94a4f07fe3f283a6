"""Transformers of many shapes with weights that hide nothing, and inputs for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kontext_fast.engine.ops import PortableOps, Precision
from kontext_fast.engine.transformer import EngineTransformer, Prepared
from kontext_fast.engine.weights import take_weights
from tests.pipelines import TINY


@dataclass(frozen=True)
class Shape:
    double: int = 2
    single: int = 2
    heads: int = 3
    head_dim: int = 16
    axes: tuple[int, int, int] = (4, 6, 6)
    guidance: bool = True
    channels: int = 8
    text_channels: int = 20
    pooled_channels: int = 12


SHAPES = {
    "both-kinds": Shape(),
    "no-guidance": Shape(guidance=False, heads=2, head_dim=24, axes=(8, 8, 8), channels=12),
    "double-only": Shape(double=3, single=0),
    "single-only": Shape(double=0, single=3, heads=5),
    "one-head": Shape(double=1, single=1, heads=1, head_dim=32, axes=(16, 8, 8)),
}


def random_transformer(shape: Shape, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """Norm weights and biases are random too, so that mixing two of them up shows."""
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=shape.channels,
        num_layers=shape.double,
        num_single_layers=shape.single,
        attention_head_dim=shape.head_dim,
        num_attention_heads=shape.heads,
        joint_attention_dim=shape.text_channels,
        pooled_projection_dim=shape.pooled_channels,
        guidance_embeds=shape.guidance,
        axes_dims_rope=shape.axes,
    )
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in transformer.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_norm = parameter.dim() == 1 and name.endswith("weight")
        parameter.data = (
            1 + 0.3 * noise if is_norm else noise * (0.2 if parameter.dim() == 1 else len(noise[0]) ** -0.5)
        )
    # Not `transformer.to`, which warns about casting what was loaded; nothing was.
    return torch.nn.Module.to(transformer, dtype=dtype).requires_grad_(False).eval()


@cache
def tiny_transformer() -> Any:
    from diffusers import FluxTransformer2DModel

    loaded = FluxTransformer2DModel.from_pretrained(TINY / "transformer", dtype=torch.float32)
    return loaded.requires_grad_(False).eval()


def inputs_for(
    transformer: Any,
    *,
    batch: int = 1,
    text: int = 7,
    image: tuple[int, int] = (3, 5),
    reference: tuple[int, int] = (2, 4),
) -> dict[str, Any]:
    """Arguments of the transformer's forward; `image` and `reference` are rows and columns of tokens."""
    config, dtype = transformer.config, transformer.dtype
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    ids = torch.cat([_grid(0, *image), _grid(1, *reference)])
    return {
        "hidden_states": noise(batch, len(ids), config.in_channels),
        "encoder_hidden_states": noise(batch, text, config.joint_attention_dim),
        "pooled_projections": noise(batch, config.pooled_projection_dim),
        "timestep": torch.full((batch,), 0.6).to(dtype),
        "guidance": torch.full((batch,), 2.5) if config.guidance_embeds else None,
        "img_ids": ids.to(dtype),
        "txt_ids": torch.zeros(text, 3, dtype=dtype),
    }


def _grid(number: int, rows: int, columns: int) -> Tensor:
    return torch.cartesian_prod(torch.tensor([float(number)]), torch.arange(float(rows)), torch.arange(float(columns)))


@contextmanager
def engine_on(transformer: Any, precision: Precision = "bf16") -> Iterator[EngineTransformer]:
    with ExitStack() as undo:
        yield EngineTransformer(take_weights(transformer, precision, undo), PortableOps(precision=precision))


def prepare(
    engine: EngineTransformer,
    inputs: dict[str, Any],
    *,
    timesteps: tuple[float, ...] = (0.9,),
) -> Prepared:
    """For `timesteps` and then the one in `inputs`, which thus has the index `len(timesteps)`."""
    given = inputs["timestep"][:1]
    return engine.prepare(
        timesteps=torch.cat([torch.tensor(timesteps).to(given), given]),
        guidance=inputs["guidance"],
        pooled=inputs["pooled_projections"],
        text_ids=inputs["txt_ids"],
        image_ids=inputs["img_ids"],
        image_tokens=int((inputs["img_ids"][:, 0] == 0).sum()),
    )


def stepped(engine: EngineTransformer, prepared: Prepared, inputs: dict[str, Any], index: int = 1) -> Tensor:
    text = engine.embed_text(inputs["encoder_hidden_states"])
    return engine.step(prepared, index, inputs["hidden_states"], text)


def expected(transformer: Any, inputs: dict[str, Any]) -> Tensor:
    """What diffusers gives for the image tokens."""
    tokens = int((inputs["img_ids"][:, 0] == 0).sum())
    with torch.no_grad():
        output: Tensor = transformer(**inputs).sample
    return output[:, :tokens]


def relative_error(result: Tensor, truth: Tensor) -> float:
    difference = result.double() - truth.double()
    return float(difference.norm() / truth.double().norm())
