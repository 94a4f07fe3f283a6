"""The transformer in another precision and nothing else, to measure what rounding alone does to an output."""

from __future__ import annotations

from typing import Any

from kontext_fast.pipeline.device import memory_errors


def use_other_precision(pipe: Any) -> None:
    """Turn a bfloat16 transformer into float32 and any other into bfloat16, for good: load again for the old one.

    Its inputs and outputs keep their precision. The time of a step and the guidance are inputs too: diffusers rounds
    them to the transformer's precision after multiplying them by 1000, which moves a step by up to two thousandths.
    Here they keep the value that they had, so that the rounding measured is that of the arithmetic.
    Raises OutOfMemory.
    """
    import torch

    transformer = pipe.transformer
    before = transformer.dtype
    other = torch.float32 if before is torch.bfloat16 else torch.bfloat16
    with memory_errors(f"turning the transformer into {str(other).removeprefix('torch.')}"):
        # Not the method of diffusers, which warns of layers that this model does not have.
        torch.nn.Module.to(transformer, other)
    forward, embed = transformer.forward, transformer.time_text_embed.forward
    scaled: dict[str, torch.Tensor] = {}

    def embed_exactly(*inputs: torch.Tensor) -> Any:
        times = [scaled[name] for name in ("timestep", "guidance") if name in scaled]
        return embed(*times, inputs[-1])

    def forward_cast(**inputs: Any) -> Any:
        scaled.clear()
        for name in ("timestep", "guidance"):
            if (value := inputs.get(name)) is not None:
                scaled[name] = (value.to(before) * 1000).float()
        found = forward(**{name: _cast(value, other) for name, value in inputs.items()})
        return tuple(_cast(value, before) for value in found)

    transformer.time_text_embed.forward = embed_exactly
    transformer.forward = forward_cast


def _cast(value: Any, dtype: Any) -> Any:
    import torch

    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
