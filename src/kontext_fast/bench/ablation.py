"""What each optimization of a preset is worth: the preset with only that one, and the preset without it.

The names say it all (`classic-only-compile`, `classic-without-compile`), so that a worker needs no more than a name.
"""

from __future__ import annotations

from collections.abc import Iterable

from kontext_fast.bench.peers.registry import find_peer
from kontext_fast.discovery import unknown_name
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations import presets
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.presets import Preset
from kontext_fast.records.names import ONLY, WITHOUT, Ablation, is_peer, parse_ablation


def ablations(name: str) -> tuple[str, ...]:
    """The preset, then each of its optimizations alone, then the preset without each; no two that are the same.

    Raises InvalidInput for an unknown preset and for one that has nothing to take apart.
    """
    names = [one.name for one in find_preset(name).optimizations]
    if len(names) < 2:
        raise InvalidInput(f"The preset {name} has {len(names)} optimizations; ablate one that has at least two.")
    alone = [f"{name}{ONLY}{one}" for one in names]
    # Of two optimizations, one without the other is the other alone.
    without = [f"{name}{WITHOUT}{one}" for one in names] if len(names) > 2 else []
    return (name, *alone, *without)


def find_preset(name: str) -> Preset:
    """A preset, an ablation of one, or a peer with its whole recipe, by its name. Raises InvalidInput for any other."""
    if is_peer(name):
        peer = find_peer(name)
        return Preset(name, peer.summary, (*peer.needs, *peer.where_possible))
    known = presets.PRESETS
    if name in known:
        return known[name]
    ablated = parse_ablation(name)
    if ablated is None or ablated.preset not in known:
        raise InvalidInput(unknown_name("preset", name, known))
    whole = known[ablated.preset]
    if ablated.optimization not in {one.name for one in whole.optimizations}:
        raise InvalidInput(f"The preset {whole.name} has no optimization {ablated.optimization!r} to ablate.")
    return Preset(
        name=name,
        summary=f"{whole.summary}: {ablated.kind.strip('-')} {ablated.optimization}",
        optimizations=_kept(whole.optimizations, ablated),
        on_random=None if whole.on_random is None else _kept(whole.on_random, ablated),
    )


def _kept(optimizations: Iterable[Optimization], ablated: Ablation) -> tuple[Optimization, ...]:
    return tuple(one for one in optimizations if (one.name == ablated.optimization) == (ablated.kind == ONLY))
