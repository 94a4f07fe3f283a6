"""What a peer is: pure data."""

from __future__ import annotations

from dataclasses import dataclass

from kontext_fast.bench.peers.technique import Technique
from kontext_fast.optimizations.base import Optimization
from kontext_fast.records.names import PREFIX


@dataclass(frozen=True)
class Peer:
    """A recipe that another project publishes."""

    name: str
    summary: str
    source: str
    """Where the recipe is published."""
    needs: tuple[Optimization, ...]
    """Without one of these it is refused."""
    where_possible: tuple[Technique, ...] = ()
    """Left out where the hardware cannot run them, which a label then says."""

    @property
    def preset(self) -> str:
        """What it is asked for as."""
        return PREFIX + self.name
