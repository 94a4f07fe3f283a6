"""flux-fast, the recipe of PyTorch and Hugging Face."""

from __future__ import annotations

from kontext_fast.bench.peers.techniques.compile import WholeCompile
from kontext_fast.bench.peers.techniques.diffusers_fused_qkv import DiffusersFusedQkv
from kontext_fast.bench.peers.techniques.flash_attention_3_fp8 import FlashAttention3Fp8
from kontext_fast.bench.peers.techniques.torchao_float8 import TorchaoFloat8
from kontext_fast.optimizations.presets import declare_preset
from kontext_fast.optimizations.techniques.fused_vae import ChannelsLast

_SOURCE = "https://github.com/huggingface/flux-fast"

# In both, projections are fused before they are quantized.
FLUX_FAST = declare_preset(
    "peer:flux-fast",
    "one graph with max-autotune, fused QKV, channels last, float8 per row, and FlashAttention 3 in float8 where built",
    (DiffusersFusedQkv(), TorchaoFloat8(), ChannelsLast(), WholeCompile()),
    optional=(FlashAttention3Fp8(),),
    source=_SOURCE,
)

FLUX_FAST_PER_TENSOR = declare_preset(
    "peer:flux-fast-per-tensor",
    "the same with one float8 scale per tensor, which is what the code of flux-fast does",
    (DiffusersFusedQkv(), TorchaoFloat8(granularity="tensor"), ChannelsLast(), WholeCompile()),
    optional=(FlashAttention3Fp8(),),
    source=_SOURCE,
)
"""In the code of flux-fast the line for a scale per row is commented out."""
