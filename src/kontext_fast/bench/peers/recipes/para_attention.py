"""ParaAttention."""

from __future__ import annotations

from kontext_fast.bench.peers.peer import Peer
from kontext_fast.bench.peers.techniques.unsupported import Unsupported

PARA_ATTENTION = Peer(
    name="para-attention",
    summary="ParaAttention's First Block Cache",
    source="https://github.com/chengzeyi/ParaAttention",
    needs=(
        Unsupported(
            reason="ParaAttention 0.3.38 fails on diffusers 0.42 (TypeError: a single block misses its "
            "encoder_hidden_states); use peer:first-block-cache, which is diffusers' version of it"
        ),
    ),
)
