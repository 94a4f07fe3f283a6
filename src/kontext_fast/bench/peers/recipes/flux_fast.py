"""flux-fast, the recipe of PyTorch and Hugging Face."""

from __future__ import annotations

from kontext_fast.bench.peers.peer import Peer
from kontext_fast.bench.peers.techniques.diffusers_fused_qkv import DiffusersFusedQkv
from kontext_fast.bench.peers.techniques.flash_attention_3_fp8 import FlashAttention3Fp8
from kontext_fast.bench.peers.techniques.torchao_float8 import TorchaoFloat8
from kontext_fast.bench.peers.techniques.whole_compile import WholeCompile
from kontext_fast.optimizations.techniques.channels_last import ChannelsLast

_SOURCE = "https://github.com/huggingface/flux-fast"


def _peer(name: str, summary: str, float8: TorchaoFloat8) -> Peer:
    # Projections are fused before they are quantized.
    needs = (DiffusersFusedQkv(), float8, ChannelsLast(), WholeCompile())
    return Peer(name, summary, _SOURCE, needs, where_possible=(FlashAttention3Fp8(),))


FLUX_FAST = _peer(
    "flux-fast", "flux-fast: whole graph, max-autotune, fused QKV, channels last, float8 per row", TorchaoFloat8()
)

FLUX_FAST_PER_TENSOR = _peer(
    "flux-fast-per-tensor", "flux-fast with one float8 scale per tensor", TorchaoFloat8(granularity="tensor")
)
"""What its code does; the line for a scale per row is commented out there."""
