"""What a verification is asked for: the limits of its options, and the items that it names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kontext_fast.datasets.folder import read_pairs
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.presets import PRESETS, Preset
from kontext_fast.verify.request import Request, dataset_of, every_preset
from tests.pipelines import picture
from tests.verify.fake_edits import write_dataset

SMALLEST = Request(presets=("compile",), items=2, seeds=2, control_items=2, converged_items=2, batch=1, steps=1)


def test_limits_themselves_are_accepted() -> None:
    assert SMALLEST.all_seeds == (0, 1)
    assert replace(SMALLEST, seed=7, seeds=3).all_seeds == (7, 8, 9)
    assert replace(SMALLEST, converged_items=0, batch=None).checkpoint == "tiny"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"items": 1}, "1 items are too few; use at least 2, and 100 for a verdict."),
        ({"seeds": 1}, "One seed gives no seed noise to compare with; use at least 2 seeds."),
        ({"control_items": 1}, "1 items are too few for the controls; use at least 2."),
        (
            {"converged_items": 1},
            "1 items cannot be compared with the converged reference; use 2 or more, up to the 2 items of the "
            "verification.",
        ),
        (
            {"converged_items": 3},
            "3 items cannot be compared with the converged reference; use 2 or more, up to the 2 items of the "
            "verification.",
        ),
        (
            {"converged_items": -1},
            "-1 items cannot be compared with the converged reference; use 2 or more, up to the 2 items of the "
            "verification.",
        ),
        ({"batch": 0}, "The batch is 0; give a whole number of at least 1."),
        *(
            ({"presets": presets}, "Name each preset to verify once, and not baseline, which they are compared with.")
            for presets in ((), ("baseline",), ("compile", "compile"), ("compile", Preset("compile", "", ())))
        ),
        # What an edit refuses, of the last seed, too.
        ({"steps": 0}, "The number of steps is 0; give a whole number from 1 to 1000."),
        ({"guidance": -1.0}, "The guidance is -1.0; give a number of at least 0, for example 2.5."),
        ({"seed": -1}, f"The seed is -1; give a whole number from 0 to {2**63 - 2}."),
    ],
)
def test_useless_request_is_refused_word_by_word(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        replace(SMALLEST, **changes)
    assert str(caught.value) == words


def test_presets_that_were_fitted_to_other_weights_are_left_out() -> None:
    fitted = {name for name, preset in PRESETS.items() if preset.fitted_to == "tiny"}
    assert fitted
    assert set(every_preset()) == set(PRESETS) - {"baseline"}
    assert set(every_preset("someone/weights")) == set(PRESETS) - {"baseline"} - fitted


def test_items_are_those_that_are_named(tmp_path: Path) -> None:
    pairs = read_pairs([(picture(0), "make it red"), (picture(1), "make it blue")])
    assert dataset_of(replace(SMALLEST, dataset=pairs)) is pairs
    of_file = dataset_of(replace(SMALLEST, dataset=write_dataset(tmp_path, 3)))
    assert len(of_file.items) == 3


def test_tiny_edits_as_many_held_out_shapes_as_are_asked_for() -> None:
    first, other = (dataset_of(replace(SMALLEST, items=3, seed=seed)) for seed in (0, 5))
    assert len(first.items) == len(other.items) == 3
    assert {item.id for item in first.items}.isdisjoint(item.id for item in other.items)
    assert len(dataset_of(replace(SMALLEST, checkpoint="random")).items) == 2


def test_checkpoint_that_learned_no_shapes_needs_items() -> None:
    with pytest.raises(InvalidInput) as caught:
        dataset_of(replace(SMALLEST, checkpoint="someone/weights"))
    assert str(caught.value) == (
        "Give images and instructions for someone/weights with --dataset: a folder, a JSONL file or a copy of "
        "KontextBench."
    )
    with pytest.raises(InvalidInput) as caught:
        dataset_of(replace(SMALLEST, pipe=object()))
    assert str(caught.value) == "Give items: pairs of an image and an instruction, or the path of a data set."
