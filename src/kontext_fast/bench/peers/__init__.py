"""Peers: presets that other projects publish, measured on the same workload by the same benchmark.

A recipe (`recipes/`) is a `Preset` whose name starts with `peer:`. Its techniques (`techniques/`) are optimizations
that call the code of the other project. `find_preset` looks up whatever a benchmark can measure.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from kontext_fast.bench.peers import recipes
from kontext_fast.discovery import values
from kontext_fast.errors import KontextError
from kontext_fast.optimizations import presets
from kontext_fast.optimizations.presets import Preset
from kontext_fast.records.names import PEER_PREFIX, is_peer


@cache
def discover_peers() -> Mapping[str, Preset]:
    """Every peer by name, in alphabetical order, from a scan of the package of recipes. Imports no torch.

    Raises KontextError as `discovery.values` does, and for a name without the prefix.
    """
    peers: Mapping[str, Preset] = values(recipes, Preset, "peer")
    for name in peers:
        if not is_peer(name):
            raise KontextError(f"The name of the peer {name!r} has no prefix; call it {PEER_PREFIX + name!r}.")
    return peers


def find_preset(name: str) -> Preset:
    """The built-in preset, the peer, or the ablation of either that is called `name`. Raises InvalidInput."""
    return presets.find_preset(name, discover_peers() if is_peer(name) else None)
