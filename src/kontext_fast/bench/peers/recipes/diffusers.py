"""diffusers: its compilation, the caches that it ships, and fewer steps."""

from __future__ import annotations

from typing import Final

from kontext_fast.bench.peers.techniques.compile import CompiledBlocks, RegionalCompile
from kontext_fast.bench.peers.techniques.cudnn_attention import CudnnAttention
from kontext_fast.bench.peers.techniques.diffusers_first_block_cache import DiffusersFirstBlockCache
from kontext_fast.bench.peers.techniques.diffusers_magcache import DiffusersMagCache
from kontext_fast.bench.peers.techniques.diffusers_taylorseer import DiffusersTaylorSeer
from kontext_fast.bench.peers.techniques.fewer_steps import FewerSteps
from kontext_fast.bench.peers.techniques.torchao_float8 import TorchaoFloat8
from kontext_fast.optimizations.presets import declare_preset

# With coordinate descent most runs hung on an H100; without it a full step takes two per cent longer.
GPU_BASE: Final = (TorchaoFloat8(coordinate_descent=False), CudnnAttention(), CompiledBlocks())
"""What every cache of steps is combined with where the hardware allows it, so that peers differ in the cache alone."""

_CACHES = "https://huggingface.co/docs/diffusers/main/en/optimization/cache"

COMPILED = declare_preset(
    "peer:compiled",
    "repeated blocks compiled, cuDNN's attention",
    (RegionalCompile(),),
    optional=(CudnnAttention(),),
    source="https://huggingface.co/docs/diffusers/main/en/optimization/fp16",
)

COMPILED_FLOAT8 = declare_preset(
    "peer:compiled-float8",
    "the same, linear layers in float8 with a scale per row",
    (TorchaoFloat8(), RegionalCompile()),
    optional=(CudnnAttention(),),
    source="https://github.com/sayakpaul/diffusers-torchao",
)

FIRST_BLOCK_CACHE = declare_preset(
    "peer:first-block-cache",
    "diffusers' First Block Cache at 0.12, the threshold that ParaAttention gives for float8",
    (DiffusersFirstBlockCache(threshold=0.12),),
    optional=GPU_BASE,
    source="https://github.com/chengzeyi/ParaAttention/blob/main/doc/fastest_flux.md",
)

TAYLORSEER = declare_preset(
    "peer:taylorseer",
    "diffusers' TaylorSeer: attention is forecast at four of five steps after the tenth",
    (DiffusersTaylorSeer(warmup_steps=10),),
    optional=(CudnnAttention(),),
    source=_CACHES,
)

TAYLORSEER_LITE = declare_preset(
    "peer:taylorseer-lite",
    "its lite mode: no block runs at those steps",
    (DiffusersTaylorSeer(warmup_steps=10, lite=True),),
    optional=GPU_BASE,
    source=_CACHES,
)

MAGCACHE = declare_preset(
    "peer:magcache",
    "MagCache as diffusers ships it, with its author's ratios and settings for Kontext",
    (DiffusersMagCache(),),
    optional=GPU_BASE,
    source="https://github.com/Zehong-Ma/MagCache",
)

FEWER_STEPS = tuple(
    declare_preset(
        f"peer:steps-{steps}",
        f"{steps} steps for a request of 28, and no cache: every cache has to be better than this",
        (FewerSteps(steps_of_28=steps),),
        optional=GPU_BASE,
        source="https://huggingface.co/docs/diffusers/main/en/api/pipelines/flux",
    )
    for steps in (8, 12, 20)
)
