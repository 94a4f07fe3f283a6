"""What a verification wrote before it was killed: all of it is read again, and nothing half-written is."""

from __future__ import annotations

import pickle
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
    journal.resume(SETUP, lambda image: Path(__file__))
    return journal


def test_resumed_journal_has_everything(tmp_path: Path) -> None:
    before = _journal(tmp_path)
    after = _resumed(tmp_path)
    assert after.done("half the steps") == before.done("half the steps")
    assert list(after.done("half the steps")) == ["x", "y"]
    assert not after.done("blur")
    assert np.load(after.latents_file("half the steps", "y", 0)).tolist() == [[ord("y")] * 2] * 2
    assert not after.latents_file("half the steps", "y", 1).exists()


def test_items_of_one_call_are_lines_of_their_own(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    journal = Journal(tmp_path)
    journal.begin(SETUP)
    journal.add("blur", [(item, [_output(item, 0)], {}) for item in "xyz"])
    assert list(_resumed(tmp_path).done("blur")) == ["x", "y", "z"]


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('a pickle ran')",)


def test_latents_that_are_a_pickle_do_not_run(tmp_path: Path) -> None:
    _journal(tmp_path).latents_file("half the steps", "x", 0).write_bytes(pickle.dumps(_Trap()))
    assert list(_resumed(tmp_path).done("half the steps")) == ["y"]


def test_latents_of_an_arm_have_a_folder_of_its_name(tmp_path: Path) -> None:
    file = _journal(tmp_path / "new" / "out").latents_file("fast, true CFG", "x", 1)
    assert file == tmp_path / "new" / "out" / FOLDER / "latents" / "fast--true-CFG" / "x-1.npy"


@pytest.mark.parametrize("cut", [1, 20])
def test_truncated_last_line_is_dropped(cut: int, tmp_path: Path) -> None:
    _journal(tmp_path)
    file = tmp_path / FOLDER / "outputs.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    resumed = _resumed(tmp_path)
    assert list(resumed.done("half the steps")) == ["x"]
    resumed.add("half the steps", [("y", [_output("y", 0)], {})])
    assert list(_resumed(tmp_path).done("half the steps")) == ["x", "y"]


@pytest.mark.parametrize(
    "line",
    [
        '{"arm": "half the steps", "item": "x", "outp',
        "null",
        "[" * 9999,
        '{"arm": 1}',
        '{"arm": {}, "outputs": [3]}',
    ],
)
def test_broken_line_is_left_out_and_the_others_stay(line: str, tmp_path: Path) -> None:
    _journal(tmp_path)
    file = tmp_path / FOLDER / "outputs.jsonl"
    setup, _, last = file.read_text().splitlines()
    file.write_text("\n".join((setup, line, last, "")))
    assert list(_resumed(tmp_path).done("half the steps")) == ["y"]


@pytest.mark.parametrize(
    ("before", "after"),
    [('"item": "x"', '"item": "z"'), ('"seed": 1', '"seed": 7'), ("half the", "part of"), ('"full"', '"skipped"')],
)
def test_line_that_was_altered_is_left_out(before: str, after: str, tmp_path: Path) -> None:
    _journal(tmp_path)
    file = tmp_path / FOLDER / "outputs.jsonl"
    setup, line, last = file.read_text().splitlines()
    assert before in line
    file.write_text("\n".join((setup, line.replace(before, after), last, "")))
    resumed = _resumed(tmp_path)
    assert list(resumed.done("half the steps")) == ["y"]
    assert not resumed.done("part of steps")


def test_outputs_with_cut_latents_are_made_again(tmp_path: Path) -> None:
    latents = _journal(tmp_path).latents_file("half the steps", "x", 0)
    latents.write_bytes(latents.read_bytes()[:-3])
    assert list(_resumed(tmp_path).done("half the steps")) == ["y"]


def test_outputs_without_their_images_are_made_again(tmp_path: Path) -> None:
    _journal(tmp_path)
    journal = Journal(tmp_path)
    journal.resume(SETUP, lambda image: tmp_path / image)
    assert not journal.done("half the steps")


def test_journal_whose_setup_is_broken_is_refused(tmp_path: Path) -> None:
    _journal(tmp_path)
    file = tmp_path / FOLDER / "outputs.jsonl"
    file.write_text("[1, 2]\n" + file.read_text())
    with pytest.raises(InvalidInput, match="no verification to resume"):
        _resumed(tmp_path)


def test_journal_of_another_verification_is_refused(tmp_path: Path) -> None:
    _journal(tmp_path)
    with pytest.raises(InvalidInput, match="differs in checkpoint, steps"):
        Journal(tmp_path).resume({**SETUP, "checkpoint": "other", "steps": 3}, Path)


def test_resume_without_a_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"^There is no verification to resume; .* as --out\.$"):
        Journal(tmp_path).resume(SETUP, Path)
