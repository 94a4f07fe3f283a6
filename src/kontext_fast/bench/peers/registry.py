"""Finds every peer by scanning the package of recipes, so that adding one edits no list. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from kontext_fast.bench.peers import recipes
from kontext_fast.bench.peers.peer import Peer
from kontext_fast.discovery import unknown_name, values
from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import BASELINE


@cache
def discover_peers() -> Mapping[str, Peer]:
    """Every peer by the name of its preset, in alphabetical order. Raises KontextError if two share a name."""
    return {peer.preset: peer for peer in values(recipes, Peer, "peer").values()}


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
        raise InvalidInput(unknown_name("peer", preset, known))
    return known[preset]
