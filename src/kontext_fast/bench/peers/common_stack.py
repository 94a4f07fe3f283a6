"""What every cache of steps stands on where the hardware allows it, so that rivals differ in the cache alone."""

from __future__ import annotations

from typing import Final

from kontext_fast.bench.peers.techniques.compiled_blocks import CompiledBlocks
from kontext_fast.bench.peers.techniques.cudnn_attention import CudnnAttention
from kontext_fast.bench.peers.techniques.torchao_float8 import TorchaoFloat8

# With coordinate descent most runs hung on an H100; without it a full step takes two per cent longer.
GPU_BASE: Final = (TorchaoFloat8(coordinate_descent=False), CudnnAttention(), CompiledBlocks())
