"""The caches that diffusers ships."""

from __future__ import annotations

from kontext_fast.bench.peers.common_stack import GPU_BASE
from kontext_fast.bench.peers.peer import Peer
from kontext_fast.bench.peers.techniques.cudnn_attention import CudnnAttention
from kontext_fast.bench.peers.techniques.diffusers_first_block_cache import DiffusersFirstBlockCache
from kontext_fast.bench.peers.techniques.diffusers_magcache import DiffusersMagCache
from kontext_fast.bench.peers.techniques.diffusers_taylorseer import DiffusersTaylorSeer

_DOCS = "https://huggingface.co/docs/diffusers/main/en/optimization/cache"

FIRST_BLOCK_CACHE = Peer(
    name="first-block-cache",
    summary="diffusers' First Block Cache, at the threshold that ParaAttention gives for FLUX in float8",
    source="https://github.com/chengzeyi/ParaAttention/blob/main/doc/fastest_flux.md",
    needs=(DiffusersFirstBlockCache(threshold=0.12),),
    where_possible=GPU_BASE,
)

TAYLORSEER = Peer(
    name="taylorseer",
    summary="diffusers' TaylorSeer, forecasting attention; its hooks lie inside the blocks, so these are not compiled",
    source=_DOCS,
    needs=(DiffusersTaylorSeer(warmup_steps=10),),
    where_possible=(CudnnAttention(),),
)

TAYLORSEER_LITE = Peer(
    name="taylorseer-lite",
    summary="diffusers' TaylorSeer in lite mode, forecasting the output alone",
    source=_DOCS,
    needs=(DiffusersTaylorSeer(warmup_steps=10, lite=True),),
    where_possible=GPU_BASE,
)

MAGCACHE = Peer(
    name="magcache",
    summary="MagCache as diffusers ships it, with its author's settings and ratios for FLUX.1-Kontext",
    source="https://github.com/Zehong-Ma/MagCache",
    needs=(DiffusersMagCache(),),
    where_possible=GPU_BASE,
)
