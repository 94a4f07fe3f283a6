"""RegionE."""

from __future__ import annotations

from kontext_fast.bench.peers.peer import Peer
from kontext_fast.bench.peers.techniques.unsupported import Unsupported

REGION_E = Peer(
    name="regione",
    summary="RegionE: recomputes the edited region only",
    source="https://github.com/Peyton-Chen/RegionE",
    needs=(
        Unsupported(
            reason="RegionE 0.1.0 cannot be installed beside this package (it pins transformers 4.55.4, and 5.17 is "
            "needed here), and it calls flash-attn, which it does not install; measure it in an environment of its own"
        ),
    ),
)
