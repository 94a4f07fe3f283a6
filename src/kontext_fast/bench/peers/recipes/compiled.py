"""diffusers, compiled."""

from __future__ import annotations

from kontext_fast.bench.peers.peer import Peer
from kontext_fast.bench.peers.techniques.cudnn_attention import CudnnAttention
from kontext_fast.bench.peers.techniques.regional_compile import RegionalCompile
from kontext_fast.bench.peers.techniques.torchao_float8 import TorchaoFloat8

COMPILED = Peer(
    name="compiled",
    summary="diffusers with repeated blocks compiled and cuDNN's attention",
    source="https://huggingface.co/docs/diffusers/main/en/optimization/fp16",
    needs=(RegionalCompile(),),
    where_possible=(CudnnAttention(),),
)

COMPILED_FLOAT8 = Peer(
    name="compiled-float8",
    summary="the same with torchao's float8, a scale per row",
    source="https://github.com/sayakpaul/diffusers-torchao",
    needs=(TorchaoFloat8(), RegionalCompile()),
    where_possible=(CudnnAttention(),),
)
