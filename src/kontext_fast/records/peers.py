"""How peers, which are what other projects publish, are named in records: `peer:magcache`."""

from __future__ import annotations

from typing import Final

PREFIX: Final = "peer:"


def is_peer(preset: str) -> bool:
    """Whether a record's preset is a peer; no preset of ours has such a name."""
    return preset.startswith(PREFIX)
