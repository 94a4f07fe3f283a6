"""Images on several cards side by side: processes that each see one card. Here each of them runs on the CPU."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import fields
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pyarrow import parquet

from kontext_fast.cli.output import Outcome
from kontext_fast.cli.rows.facts import FactsFile
from kontext_fast.cli.rows.manifest import Manifest
from kontext_fast.cli.rows.on_cards import cards_for, edit_on_cards, make_on_cards
from kontext_fast.cli.rows.run import edit_here, make_rows
from kontext_fast.cli.session import ImageJob, SessionReport, Setup, make_here
from kontext_fast.errors import CheckpointUnavailable, InvalidInput, KontextError
from kontext_fast.pipeline.edit import EditRequest
from kontext_fast.pipeline.images import ImageFile

SETUP = Setup(checkpoint="tiny", preset="baseline", lora=(), device="cpu")
CARDS = ("4", "7")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Here and in the processes: sums are split by threads, and images are compared by their bytes."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def jobs_in(folder: Path, out: str, count: int) -> list[ImageJob]:
    jobs = []
    for number in range(1, count + 1):
        source = folder / f"{number}.png"
        Image.effect_noise((64, 64), 10 + number).convert("RGB").save(source)
        request = EditRequest("make it red", steps=1, seed=number, size=(64, 64))
        jobs.append(ImageJob(source, ImageFile(folder / out / f"{number}.png"), request, row=number))
    return jobs


def contents(jobs: list[ImageJob]) -> list[bytes]:
    return [job.file.path.read_bytes() for job in jobs if job.file.path.exists()]


class Watching(Outcome):
    """What becomes of jobs, and what is done at each outcome."""

    def __init__(self, total: int, at_each: Callable[[], None]) -> None:
        super().__init__(total, quiet=True, as_json=True)
        self._at_each = at_each

    def add(self, job: ImageJob, outcome: Any, *, preset: str) -> None:
        super().add(job, outcome, preset=preset)
        self._at_each()


def card_of(pid: int) -> str:
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(value.decode() for name, _, value in (line.partition(b"=") for line in variables) if b"VISIBLE" in name)


def test_cards_make_the_files_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    jobs, same = jobs_in(tmp_path, "a", 4), jobs_in(tmp_path, "b", 4)
    (tmp_path / "2.png").write_text("no image")
    seen: set[tuple[str, str]] = set()
    reports: list[SessionReport] = []
    outcome = Watching(4, lambda: seen.update((child.name, card_of(child.pid or 0)) for child in active_children()))
    make_on_cards(SETUP, jobs, outcome, reports.append, cards=CARDS)
    assert seen <= {("card 4", "4"), ("card 7", "7")}
    assert seen
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5,7"
    assert sorted(Path(image["path"]).name for image in outcome.images) == ["1.png", "3.png", "4.png"]
    assert "not an image" in outcome.failed[0]["reason"]
    (report,) = reports
    assert (report.facts["cards"], report.facts["checkpoint"]["name"]) == (2, "tiny")
    assert not active_children()
    make_here(SETUP, same, Outcome(4, quiet=True, as_json=True), lambda _: None)
    assert contents(jobs) == contents(same)


def test_named_device_needs_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    anywhere = Setup(checkpoint="tiny", preset="baseline", lora=(), device=None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cards_for(anywhere) == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-gone")
    assert cards_for(anywhere) == ("GPU-a", "GPU-b")
    assert cards_for(SETUP) == ()
    monkeypatch.setenv("RANK", "0")
    assert cards_for(anywhere) == ()


def test_single_image_needs_no_processes(tmp_path: Path) -> None:
    processes: list[Any] = []
    outcome = Watching(1, lambda: processes.extend(active_children()))
    make_on_cards(SETUP, jobs_in(tmp_path, "a", 1), outcome, lambda _: None, cards=CARDS)
    assert (len(outcome.images), processes) == (1, [])


class Deadly(ImageJob):
    """Ends the process that reads its image, as one that runs out of memory is ended."""

    def request(self) -> EditRequest:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def edited(folder: Path, jobs: list[ImageJob], run: Any) -> list[dict[str, Any]]:
    """Facts of `jobs` without their seconds."""
    manifest = Manifest([(SETUP, jobs)], (), ())
    facts = FactsFile(folder / "facts.parquet")
    make_rows(manifest, facts, run, overwrite=False, quiet=True, as_json=False)
    rows: list[dict[str, Any]] = parquet.read_table(facts.path).to_pylist()
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.slow
def test_lost_process_is_named_and_its_images_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs, same = jobs_in(tmp_path, "a", 16), jobs_in(tmp_path, "b", 16)
    killed: list[int] = []

    def on_cards(setup: Setup, jobs: Any, facts: FactsFile, outcome: Outcome) -> None:
        add = outcome.add

        def add_and_kill(job: ImageJob, result: Any, *, preset: str) -> None:
            add(job, result, preset=preset)
            if not killed:
                victim = next(child for child in active_children() if child.name == "card 7")
                killed.append(victim.pid or 0)
                os.kill(killed[0], signal.SIGKILL)

        monkeypatch.setattr(outcome, "add", add_and_kill)
        edit_on_cards(setup, jobs, facts, outcome, cards=CARDS)

    facts = edited(tmp_path / "a", jobs, on_cards)
    assert killed
    assert "The process of card 7 was ended by signal 9" in capsys.readouterr().err
    assert facts == edited(tmp_path / "b", same, edit_here)
    assert len(facts) == 16
    assert contents(jobs) == contents(same)


@pytest.mark.slow
def test_image_that_ends_two_processes_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = jobs_in(tmp_path, "a", 8)
    values = {field.name: getattr(jobs[2], field.name) for field in fields(ImageJob)}
    jobs[2] = Deadly(**values)
    outcome = Watching(8, lambda: None)
    make_on_cards(SETUP, jobs, outcome, lambda _: None, cards=CARDS)
    assert [Path(failure["input"]).name for failure in outcome.failed] == ["row 3"]
    assert "was ended by signal 9 at this image, as another one before it" in outcome.failed[0]["reason"]
    assert len(outcome.images) == len(contents(jobs)) == 7
    assert capsys.readouterr().err.count("was ended by signal 9") >= 2
    with pytest.raises(InvalidInput, match="1 of 8 images were not made"):
        outcome.raise_failures()


@pytest.mark.slow
def test_refusal_of_a_process_is_that_of_the_command(tmp_path: Path) -> None:
    setup = Setup(checkpoint="./nowhere", preset="baseline", lora=(), device="cpu")
    with pytest.raises(CheckpointUnavailable, match="nowhere"):
        make_on_cards(setup, jobs_in(tmp_path, "a", 2), Watching(2, lambda: None), lambda _: None, cards=CARDS)
    assert not active_children()


@pytest.mark.slow
def test_cards_that_are_lost_while_they_load_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kontext_fast.cli.rows.on_cards._work", ended_at_once)
    with pytest.raises(KontextError, match="The processes of all cards ended before they had loaded"):
        make_on_cards(SETUP, jobs_in(tmp_path, "a", 2), Watching(2, lambda: None), lambda _: None, cards=CARDS)
    assert capsys.readouterr().err.count("while it loaded") == 2


def ended_at_once(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
