"""What the bundled checkpoint has learned, by its judge, on items that training never saw."""

from __future__ import annotations

from collections import defaultdict

import pytest

from kontext_fast.items.shapes import held_out
from kontext_fast.items.shapes.judge import judge
from kontext_fast.pipeline.edit import EditRequest, edit
from kontext_fast.pipeline.load import load

ACCEPTED, ACCEPTED_PER_KIND = 0.90, 0.75


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.xfail(strict=True, reason="the editor of the bundled tiny is not trained yet; see training/README.md")
def test_held_out_edits_are_accepted() -> None:
    pipe = load("tiny").pipe
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for seed, item in enumerate(held_out(200)):
        image = edit(pipe, EditRequest(item.instruction, item.image, seed=seed)).images[0]
        by_kind[item.kind].append(judge(image, item).accepted)
    shares = {kind: sum(accepted) / len(accepted) for kind, accepted in by_kind.items()}
    assert sum(shares.values()) / len(shares) >= ACCEPTED, shares
    assert min(shares.values()) >= ACCEPTED_PER_KIND, shares
