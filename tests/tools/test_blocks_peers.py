"""The table of peers has every recipe, with its source."""

from __future__ import annotations

from pathlib import Path

from kontext_fast.bench.peers import discover_peers
from kontext_fast.records.schema import BASELINE
from tools.docs.blocks import peers
from tools.docs.doc_context import DocContext
from tools.docs.result_tree import find_published


def test_each_peer_is_a_row_with_its_source(tmp_path: Path) -> None:
    text = peers.render(DocContext(find_published(tmp_path), None))
    rows = {line.split("`")[1]: line for line in text.splitlines()[2:]}
    assert list(rows) == [BASELINE, *discover_peers()]
    for name, peer in discover_peers().items():
        assert peer.summary in rows[name]
        assert f"({peer.source})" in rows[name]
