"""The table of optimizations has every class, as it says of itself."""

from __future__ import annotations

from pathlib import Path

from kontext_fast.optimizations.registry import discover
from tools.docs.blocks import optimizations
from tools.docs.doc_context import DocContext
from tools.docs.result_tree import find_published


def test_every_optimization_is_a_row(tmp_path: Path) -> None:
    text = optimizations.render(DocContext(find_published(tmp_path)))
    rows = {line.split("`")[1]: [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]}
    assert list(rows) == list(discover())
    for name, (_, summary, effect, *_) in rows.items():
        assert summary == discover()[name].summary
        assert effect.startswith(str(discover()[name]().effect))
    assert rows["engine"][2] == "numeric; lossy in fp8, int8, flash3_fp8"
    assert rows["step_reuse"][4] == "`engine`"
    # A conflict is declared on one side and holds on both; some hold in one mode only.
    assert rows["fuse_qkv"][5] == "`engine`"
    assert rows["compile"][5] == "`engine`, `first_block_cache` (mode=whole), `solver` (mode=whole)"
    assert rows["first_block_cache"][5] == "`compile` (mode=whole), `engine`, `solver`"
