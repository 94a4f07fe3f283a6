"""`kontext edit --gpus`: processes that make each image together. Here each of them runs on the CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext_fast.cli.main import run
from kontext_fast.cli.output import Outcome
from kontext_fast.cli.session import ImageJob, SessionReport, Setup
from kontext_fast.cli.together import gpus_of, maker
from kontext_fast.errors import InvalidInput, KontextError, Refused
from kontext_fast.pipeline.edit import EditRequest
from kontext_fast.pipeline.images import ImageFile


def _jobs(folder: Path, count: int, **options: Any) -> list[ImageJob]:
    jobs = []
    for number in range(count):
        source = folder / f"{number}.png"
        Image.effect_noise((64, 64), 10 + number).convert("RGB").save(source)
        request = EditRequest("make it red", seed=number, size=(64, 64), **{"steps": 2, **options})
        jobs.append(ImageJob(source, ImageFile(folder / f"{number}.edited.png"), request))
    return jobs


def test_number_of_gpus_is_that_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert (gpus_of(None), gpus_of(3)) == (1, 3)
    with pytest.raises(InvalidInput, match="at least 1"):
        gpus_of(0)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (gpus_of(None), gpus_of(2)) == (2, 2)
    with pytest.raises(InvalidInput, match="leave out --gpus 3"):
        gpus_of(3)


def test_more_gpus_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(Refused, match=r"torch sees 2 here; use --gpus 2\."):
        maker("faithful", 4, None)
    with pytest.raises(InvalidInput, match="leave out --device cuda:1"):
        maker("faithful", 2, "cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(Refused, match="leave it out"):
        maker("faithful", 2, None)


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--facts", "facts.parquet"), "leave out --manifest"), (("--preset", "baseline"), "has no engine")],
    ids=["facts", "preset"],
)
def test_what_gpus_cannot_do_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, str], said: str
) -> None:
    (job,) = _jobs(tmp_path, 1)
    assert run(["edit", str(job.source), "make it red", "--gpus", "2", "--device", "cpu", *options]) == 2
    assert said in capsys.readouterr().err
    assert not job.file.path.exists()


@pytest.mark.slow
def test_images_made_together_are_those_of_one_process(tmp_path: Path) -> None:
    jobs = _jobs(tmp_path, 2)
    jobs[0].source.write_text("no image")  # type: ignore[union-attr]
    outcome, reports = Outcome(2, quiet=True, as_json=True), list[SessionReport]()
    setup = Setup(checkpoint="tiny", preset="faithful", lora=(), device="cpu")
    maker("faithful", 2, "cpu")(setup, jobs, outcome, reports.append)
    assert "not an image" in outcome.failed[0]["reason"]
    assert [image["path"] for image in outcome.images] == [str(jobs[1].file.path)]
    assert reports[0].facts["gpus"] == 2
    assert not active_children()
    together = np.asarray(Image.open(jobs[1].file.path), dtype=int)
    alone = ["edit", str(jobs[1].source), "make it red", "--checkpoint", "tiny", "--device", "cpu", "--seed", "1",
             "--steps", "2", "--size", "64x64"]  # fmt: skip
    assert run(alone) == 0  # it is there already, since the image of one GPU is the same
    assert np.array_equal(np.asarray(Image.open(jobs[1].file.path), dtype=int), together)
    assert run([*alone, "--overwrite"]) == 0
    assert np.abs(np.asarray(Image.open(jobs[1].file.path), dtype=int) - together).max() <= 1


@pytest.mark.slow
def test_lost_process_ends_all_with_one_sentence(tmp_path: Path) -> None:
    def kill_one() -> None:
        while len(children := active_children()) < 2 or not _has_begun(children[-1].pid or 0):
            time.sleep(0.1)
        os.kill(children[-1].pid or 0, signal.SIGKILL)

    Thread(target=kill_one, daemon=True).start()
    setup = Setup(checkpoint="tiny", preset="faithful", lora=(), device="cpu")
    with pytest.raises(KontextError, match=r"The process of GPU \d was ended by signal 9, so the others"):
        maker("faithful", 2, "cpu")(
            setup, _jobs(tmp_path, 1, steps=1000), Outcome(1, quiet=True, as_json=True), lambda _: None
        )
    assert not active_children()


def _has_begun(pid: int) -> bool:
    """Whether a process has a connection to another one."""
    return any("socket" in os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink())


@pytest.mark.slow
def test_command_under_torchrun_prints_and_saves_once(tmp_path: Path) -> None:
    (job,) = _jobs(tmp_path, 1)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "kontext_fast",
         "edit", str(job.source), "make it red", "--checkpoint", "tiny", "--steps", "2", "--device", "cpu"],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("edited.png") == 1
    assert "(faithful, 2 steps" in done.stdout
    assert job.file.path.exists()
