"""Finds every peer by scanning the package of recipes, so that adding one edits no list. Imports no torch."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from kontext_fast.bench.peers import recipes
from kontext_fast.bench.peers.peer import Peer
from kontext_fast.errors import InvalidInput, KontextError
from kontext_fast.optimizations.registry import unknown
from kontext_fast.records.schema import BASELINE


@cache
def discover_peers() -> Mapping[str, Peer]:
    """Every peer by the name of its preset, in alphabetical order. Raises KontextError if two share a name."""
    found: dict[str, Peer] = {}
    for info in pkgutil.iter_modules(recipes.__path__, f"{recipes.__name__}."):
        module = importlib.import_module(info.name)
        declared = [value for key, value in vars(module).items() if not key.startswith("_")]
        for value in declared:
            for peer in value if isinstance(value, tuple) else (value,):
                if not isinstance(peer, Peer):
                    continue
                if peer.preset in found:
                    raise KontextError(f"Two recipes are called {peer.name!r}; rename the one in {info.name}.")
                found[peer.preset] = peer
    return dict(sorted(found.items()))


def peer_presets() -> tuple[str, ...]:
    """The presets that a benchmark against all peers runs beside its own.

    What this machine cannot run is among them: it becomes a record that says why. The first is the baseline, which is
    the pipeline as diffusers runs it.
    """
    return (BASELINE, *discover_peers())


def find_peer(preset: str) -> Peer:
    """The peer that is asked for as `preset`. Raises InvalidInput where there is none."""
    known = discover_peers()
    if preset not in known:
        raise InvalidInput(unknown("peer", preset, known))
    return known[preset]
