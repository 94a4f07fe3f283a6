"""`random`: the architecture of FLUX.1-Kontext-dev with random weights, for speed, memory and numerical error."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kontext_fast.engine.flops import FLUX_KONTEXT_DEV
from kontext_fast.errors import OutOfMemory, Refused
from kontext_fast.pipeline.device import choose_dtype, memory_errors
from kontext_fast.pipeline.folder import TINY_FOLDER
from kontext_fast.pipeline.load import CheckpointSource, LoadedCheckpoint, Target, loaded_checkpoint

if TYPE_CHECKING:
    import torch

RANDOM_NEEDS_GIB = 34
"""31.4 GiB of bfloat16 weights, and the activations of one edit at 1024x1024."""

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Every dimension that decides what one step costs; the defaults are FLUX.1-Kontext-dev.

    Smaller ones build the same network in small, for tests.
    """

    double_blocks: int = FLUX_KONTEXT_DEV.double_blocks
    single_blocks: int = FLUX_KONTEXT_DEV.single_blocks
    heads: int = FLUX_KONTEXT_DEV.heads
    head_dim: int = FLUX_KONTEXT_DEV.head_dim
    rope_axes: tuple[int, int, int] = (16, 56, 56)
    """Channels of a head that encode the image index, the row and the column; they add up to `head_dim`."""

    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    vae_layers_per_block: int = 2
    latent_channels: int = FLUX_KONTEXT_DEV.latent_channels // 4
    """Of the VAE; a token is four of its pixels."""
    vae_scaling: float = 0.3611
    vae_shift: float = 0.1159
    native_size: int = 1024
    """Side in pixels of the square that the checkpoint is made for."""

    clip_width: int = FLUX_KONTEXT_DEV.pooled_channels
    clip_layers: int = 12
    clip_heads: int = 12
    clip_vocabulary: int = 49408
    clip_tokens: int = 77

    t5_width: int = FLUX_KONTEXT_DEV.text_channels
    t5_inner: int = 10240
    t5_layers: int = 24
    t5_heads: int = 64
    t5_head_dim: int = 64
    t5_vocabulary: int = 32128
    t5_tokens: int = 512

    def transformer(self) -> dict[str, Any]:
        """Arguments of `FluxTransformer2DModel`."""
        return {
            "in_channels": 4 * self.latent_channels,
            "num_layers": self.double_blocks,
            "num_single_layers": self.single_blocks,
            "attention_head_dim": self.head_dim,
            "num_attention_heads": self.heads,
            "joint_attention_dim": self.t5_width,
            "pooled_projection_dim": self.clip_width,
            "guidance_embeds": True,
            "axes_dims_rope": self.rope_axes,
        }

    def vae(self) -> dict[str, Any]:
        """Arguments of `AutoencoderKL`."""
        stages = len(self.vae_channels)
        return {
            "down_block_types": ("DownEncoderBlock2D",) * stages,
            "up_block_types": ("UpDecoderBlock2D",) * stages,
            "block_out_channels": self.vae_channels,
            "layers_per_block": self.vae_layers_per_block,
            "latent_channels": self.latent_channels,
            "sample_size": self.native_size,
            "scaling_factor": self.vae_scaling,
            "shift_factor": self.vae_shift,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        }

    def clip(self) -> dict[str, Any]:
        """Arguments of `CLIPTextConfig`."""
        return {
            "hidden_size": self.clip_width,
            "intermediate_size": 4 * self.clip_width,
            "projection_dim": self.clip_width,
            "num_hidden_layers": self.clip_layers,
            "num_attention_heads": self.clip_heads,
            "max_position_embeddings": self.clip_tokens,
            "vocab_size": self.clip_vocabulary,
            # As in the published configuration: 2 makes CLIP pool at the highest token id, which ends every text.
            "eos_token_id": 2,
            "bos_token_id": 0,
            "pad_token_id": 1,
        }

    def t5(self) -> dict[str, Any]:
        """Arguments of `T5Config`."""
        return {
            "d_model": self.t5_width,
            "d_ff": self.t5_inner,
            "d_kv": self.t5_head_dim,
            "num_layers": self.t5_layers,
            "num_heads": self.t5_heads,
            "vocab_size": self.t5_vocabulary,
            "feed_forward_proj": "gated-gelu",
            "is_encoder_decoder": False,
            "use_cache": False,
        }

    @staticmethod
    def scheduler() -> dict[str, Any]:
        """Arguments of `FlowMatchEulerDiscreteScheduler`."""
        return {
            "shift": 3.0,
            "use_dynamic_shifting": True,
            "base_shift": 0.5,
            "max_shift": 1.15,
            "base_image_seq_len": 256,
            "max_image_seq_len": 4096,
        }


def build_random(
    architecture: Architecture,
    *,
    tokenizers: Path,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    kept_on: torch.device | None = None,
) -> Any:
    """A `FluxKontextPipeline` whose weights are drawn on `device` and never exist as a whole anywhere else.

    With `kept_on` the pipeline is on that device instead, with the same weights, drawn one tensor at a time.

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
    models = {name: materialize(model, kept_on or device, dtype, generator) for name, model in shapes.items()}
    lengths = {"tokenizer": architecture.clip_tokens, "tokenizer_2": architecture.t5_tokens}
    return FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**architecture.scheduler()),
        **{
            name: AutoTokenizer.from_pretrained(tokenizers / name, model_max_length=length)
            for name, length in lengths.items()
        },
        **models,
    )


def materialize(model: Any, device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> Any:
    """Give `model`, which is on the meta device, random weights of `dtype` on `device`; frozen and in eval mode."""
    import torch

    # Not `model.to`: diffusers warns when loaded weights are cast, and here there are none yet.
    torch.nn.Module.to(model, dtype=dtype)
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        if not name.endswith("position_ids"):
            # Values of buffers are lost on the meta device, so a buffer that a new version adds has to be an error.
            raise RuntimeError(f"the buffer {name} of {type(model).__name__} cannot be rebuilt")
        buffer.copy_(torch.arange(buffer.shape[-1], device=device))
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    for module in model.modules():
        _fill(module, generator)
    _shrink_t5_queries(model)
    return model.requires_grad_(False).eval()


def _fill(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Draw weights that keep the variance of activations, so that they neither overflow nor vanish at any depth."""
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


def check_room_for_random(device: torch.device, *, in_host_memory: bool = False) -> None:
    """Raise Refused or OutOfMemory where `device`, or the host, cannot hold the checkpoint `random`."""
    import torch

    if device.type != "cuda":
        raise Refused(
            f"The checkpoint random needs a CUDA GPU with about {RANDOM_NEEDS_GIB} GiB of free memory; use tiny here."
        )
    if in_host_memory:
        import psutil

        free_bytes, where = psutil.virtual_memory().available, "the host"
    else:
        free_bytes, where = torch.cuda.mem_get_info(device)[0], str(device)
    if free_bytes < RANDOM_NEEDS_GIB * _GIB:
        raise OutOfMemory(
            f"The checkpoint random needs about {RANDOM_NEEDS_GIB} GiB of free memory and {where} has "
            f"{free_bytes / _GIB:.1f}; free what other programs hold, or use tiny."
        )


def _load(_: str, target: Target) -> LoadedCheckpoint:
    import torch

    check_room_for_random(target.device, in_host_memory=target.in_host_memory)
    dtype = choose_dtype(target.dtype or torch.bfloat16, target.device, 0)
    with memory_errors("building random"):
        pipe = build_random(
            Architecture(),
            tokenizers=TINY_FOLDER,
            device=target.device,
            dtype=dtype,
            seed=target.seed,
            kept_on=torch.device("cpu") if target.in_host_memory else None,
        )
    return loaded_checkpoint(pipe, name="random", kind="random", weights_sha256=None, dtype=dtype)


RANDOM = CheckpointSource(
    name="random",
    kind="random",
    precedence=1,
    matches=lambda word: word == "random",
    full_size=lambda _: True,
    load=_load,
)
