"""The checkpoint `random`: a pipeline of any architecture, built directly on the device with random weights.

Good for speed, memory and rounding error. Its images mean nothing, and trained weights have outlier channels that
these lack.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kontext_fast.pipeline.architecture import Architecture

if TYPE_CHECKING:
    import torch


def build_random(
    architecture: Architecture,
    *,
    tokenizers: Path,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    kept_on: torch.device | None = None,
) -> Any:
    """A `FluxKontextPipeline` on `device` that never existed on the CPU.

    With `kept_on` it is there instead, with the same weights: `device` draws them one at a time.

    `tokenizers` is a diffusers folder whose two tokenizers are used, padded to the lengths of the architecture. One
    seed gives one set of weights per kind of device, since random streams differ between kinds.
    """
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    with torch.device("meta"):
        shapes = {
            "transformer": FluxTransformer2DModel(**architecture.transformer()),
            "vae": AutoencoderKL(**architecture.vae()),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**architecture.clip())),
            "text_encoder_2": T5EncoderModel(T5Config(**architecture.t5())),
        }
    generator = torch.Generator(device).manual_seed(seed)
    models = {name: _materialize(model, kept_on or device, dtype, generator) for name, model in shapes.items()}
    lengths = {"tokenizer": architecture.clip_tokens, "tokenizer_2": architecture.t5_tokens}
    return FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**architecture.scheduler()),
        **{
            name: AutoTokenizer.from_pretrained(tokenizers / name, model_max_length=length)
            for name, length in lengths.items()
        },
        **models,
    )


def _materialize(model: Any, device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> Any:
    import torch

    # Not `model.to`: diffusers warns when loaded weights are cast, and here there are none yet.
    torch.nn.Module.to(model, dtype=dtype)
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        if not name.endswith("position_ids"):
            # Values of buffers are lost on the meta device, so one that a new version adds must not pass unseen.
            raise RuntimeError(f"the buffer {name} of {type(model).__name__} cannot be rebuilt")
        buffer.copy_(torch.arange(buffer.shape[-1], device=device))
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    for module in model.modules():
        _fill(module, generator)
    _shrink_t5_queries(model)
    return model.requires_grad_(False).eval()


def _fill(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Weights that keep the variance of what passes through, so that no width or depth overflows or dies out."""
    import torch

    def draw(parameter: torch.nn.Parameter, std: float) -> None:
        elsewhere = parameter.device.type != generator.device.type
        drawn = torch.empty_like(parameter, device=generator.device) if elsewhere else None
        torch.nn.init.normal_(parameter if drawn is None else drawn, std=std, generator=generator)
        if drawn is not None:
            parameter.data.copy_(drawn)

    for name, parameter in module.named_parameters(recurse=False):
        if name == "bias":
            torch.nn.init.zeros_(parameter)
        elif isinstance(module, torch.nn.Embedding):
            draw(parameter, 1.0)
        elif parameter.dim() == 1:
            torch.nn.init.ones_(parameter)
        else:
            draw(parameter, parameter[0].numel() ** -0.5)


def _shrink_t5_queries(model: torch.nn.Module) -> None:
    """T5 does not divide scores by the root of the head dimension; its trained queries are small instead."""
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    for module in model.modules():
        if isinstance(module, T5Attention):
            with torch.no_grad():
                module.q.weight.mul_(module.key_value_proj_dim**-0.5)
