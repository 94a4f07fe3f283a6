"""Many edits: results in order, batches where they fit, nothing run before all of them are valid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext_fast.errors import Cancelled, InvalidInput
from kontext_fast.pipeline.edit import EditRequest, edit
from kontext_fast.pipeline.edit_many import edit_many, images_per_call


@pytest.fixture
def calls(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Prompts in each call of the transformer's pipeline."""
    sizes: list[int] = []
    original = type(tiny).__call__

    def counted(pipe: Any, *args: Any, **options: Any) -> Any:
        prompts = options["prompt"]
        sizes.append(1 if isinstance(prompts, str) else len(prompts))
        return original(pipe, *args, **options)

    monkeypatch.setattr(type(tiny), "__call__", counted)
    return sizes


def edits(picture: Image.Image) -> list[EditRequest]:
    wide = picture.resize((160, 96))
    return [
        EditRequest("make it red", picture, steps=1, seed=1),
        EditRequest("make it blue", wide, steps=1, seed=2),
        EditRequest("make it green", picture, steps=1, seed=3),
        EditRequest("make it white", picture, steps=1, seed=4),
    ]


def test_results_are_in_order_and_equal_single_edits(tiny: Any, picture: Image.Image, calls: list[int]) -> None:
    requests = edits(picture)
    seen: list[tuple[int, int]] = []
    together = edit_many(tiny, requests, batch=2, on_image=lambda done, total: seen.append((done, total)))
    assert calls == [2, 1, 1]
    assert seen == [(2, 4), (3, 4), (4, 4)]
    for request, result in zip(requests, together, strict=True):
        alone = np.asarray(edit(tiny, request).image).astype(int)
        assert result.seeds == (request.seed,)
        assert np.abs(np.asarray(result.image) - alone).max() <= 2


def test_pairs_share_the_options_and_run_alone_on_a_cpu(tiny: Any, picture: Image.Image, calls: list[int]) -> None:
    assert images_per_call(tiny) == 1
    results = edit_many(tiny, [(picture, "make it red"), (picture, "make it blue")], steps=1, seed=5)
    assert calls == [1, 1]
    assert [result.seeds for result in results] == [(5,), (5,)]


def test_all_edits_are_checked_before_the_first_runs(tiny: Any, picture: Image.Image, calls: list[int]) -> None:
    bad: Any
    for bad, words in (
        (("missing.png", "x"), "no image missing"),
        ((picture, ""), "instruction is empty"),
        (picture, "a pair"),
        ((picture, "x", "y"), "a pair"),
    ):
        with pytest.raises(InvalidInput, match=words):
            edit_many(tiny, [(picture, "make it red"), bad], steps=1)
    with pytest.raises(InvalidInput, match="The batch is 0"):
        edit_many(tiny, [(picture, "make it red")], batch=0)
    assert calls == []


def test_no_edits_give_no_results(tiny: Any) -> None:
    assert edit_many(tiny, []) == []


def test_stop_between_images_is_cancelled(tiny: Any, picture: Image.Image) -> None:
    done: list[int] = []
    with pytest.raises(Cancelled):
        edit_many(
            tiny,
            [(picture, "make it red")] * 3,
            steps=1,
            on_image=lambda count, _: done.append(count),
            should_stop=lambda: bool(done),
        )
    assert done == [1]
