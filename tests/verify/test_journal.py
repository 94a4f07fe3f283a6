"""What a verification wrote before it was killed: all of it is read again, and nothing half-written is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import Output
from kontext_fast.verify.journal import FOLDER, Journal

SETUP = {"seeds": (0, 1), "checkpoint": "tiny"}


def _output(item: str, seed: int) -> Output:
    return Output(item=item, seed=seed, image="a" * 64, step_kinds=("full", "skipped"))


def _journal(out: Path) -> Journal:
    journal = Journal(out)
    journal.begin(SETUP)
    for item in ("x", "y"):
        latents = {0: np.full((2, 2), ord(item), np.float32)}
        journal.add("half the steps", [(item, [_output(item, 0), _output(item, 1)], latents)])
    return journal


def _resumed(out: Path) -> Journal:
    journal = Journal(out)
    journal.resume(SETUP)
    return journal


def test_resumed_journal_has_everything(tmp_path: Path) -> None:
    before = _journal(tmp_path)
    after = _resumed(tmp_path)
    assert after.done("half the steps") == before.done("half the steps")
    assert list(after.done("half the steps")) == ["x", "y"]
    assert not after.done("blur")
    assert np.load(after.latents_file("half the steps", "y", 0)).tolist() == [[ord("y")] * 2] * 2
    assert not after.latents_file("half the steps", "y", 1).exists()


@pytest.mark.parametrize("cut", [1, 20])
def test_truncated_last_line_is_dropped(cut: int, tmp_path: Path) -> None:
    _journal(tmp_path)
    file = tmp_path / FOLDER / "outputs.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    resumed = _resumed(tmp_path)
    assert list(resumed.done("half the steps")) == ["x"]
    resumed.add("half the steps", [("y", [_output("y", 0)], {})])
    assert list(_resumed(tmp_path).done("half the steps")) == ["x", "y"]


def test_journal_of_another_verification_is_refused(tmp_path: Path) -> None:
    _journal(tmp_path)
    with pytest.raises(InvalidInput, match="differs in checkpoint, steps"):
        Journal(tmp_path).resume({**SETUP, "checkpoint": "other", "steps": 3})


def test_resume_without_a_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no verification to resume"):
        Journal(tmp_path).resume(SETUP)
