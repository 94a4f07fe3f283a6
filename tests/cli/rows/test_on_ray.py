"""`kontext edit --ray` on a cluster of this machine: the facts and files of one machine, whatever is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import needs
from tests.cli.rows.test_run import TINY, facts_in, pictures, written

pytestmark = needs.ray


@pytest.fixture
def _cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import ray

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    ray.shutdown()


def without_seconds(facts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in facts]


@pytest.mark.usefixtures("_cluster")
def test_ray_gives_the_facts_and_files_of_one_machine(kontext: Any, tmp_path: Path) -> None:
    rows = pictures(tmp_path / "in", 10)
    (tmp_path / "in" / "2.png").write_text("no image")
    manifest = written(tmp_path / "edits.jsonl", [*rows, {"image": "in/1.png", "steps": "many"}])
    here, there = tmp_path / "here", tmp_path / "there"
    assert kontext("edit", "--manifest", manifest, *TINY, "-o", here, "-q").code == 2
    outcome = kontext("edit", "--manifest", manifest, *TINY, "-o", there, "--ray", "--json")
    assert outcome.code == 2
    result = json.loads(outcome.out.splitlines()[-1])
    assert len(result["images"]) == 9
    assert {entry["input"] for entry in result["failed"]} == {"row 2", "row 11"}
    assert without_seconds(facts_in(there)) == without_seconds(facts_in(here))
    for row in facts_in(here):
        if not row["error"]:
            assert (here / row["output"]).read_bytes() == (there / row["output"]).read_bytes()
    assert "--ray-address names the cluster" in kontext("edit", "a.png", "x", "--ray-address", "a:1").err


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_hundred_images_with_actors_and_drivers_killed(tmp_path: Path) -> None:
    """Five actors and two drivers die by SIGKILL at random moments; what was there is not made again."""
    rows = pictures(tmp_path / "in", 500)
    for number in range(7, 500, 42):
        (tmp_path / "in" / f"{number}.png").write_text("no image")
    manifest = written(tmp_path / "edits.jsonl", rows)
    folder, moments, kept = tmp_path / "there", random.Random(3), dict[str, int]()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "kontext_fast", "edit", "--manifest", str(manifest), *TINY, "-q"]

    def images() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}

    def until_more(count: int, process: subprocess.Popen[bytes]) -> None:
        before = len(images())
        while len(images()) < before + count and process.poll() is None:
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 1))

    killed = 0
    for actors_to_kill in (2, 2, 1):
        last = actors_to_kill == 1
        process = subprocess.Popen(
            [*command, "-o", str(folder), "--ray"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for _ in range(actors_to_kill):
            until_more(20, process)
            actors = [
                child
                for child in psutil.Process(process.pid).children(recursive=True)
                if "ray::MapWorker" in " ".join(child.cmdline())
            ]
            moments.choice(actors).send_signal(signal.SIGKILL)
            killed += 1
        if not last:
            until_more(20, process)
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=900)
        assert process.returncode == (2 if last else -signal.SIGKILL), errors.decode()
        assert kept.items() <= images().items()
        kept = images()
    assert killed == 5
    assert len(kept) == 488
    assert b"12 of " in errors

    done = subprocess.run([*command, "-o", str(tmp_path / "here")], env=environment, capture_output=True, timeout=900)
    assert done.returncode == 2
    facts = facts_in(folder)
    assert [row["row"] for row in facts] == list(range(1, 501))
    assert sum("not an image" in (row["error"] or "") for row in facts) == 12
    assert all(row["seconds"] is not None for row in facts if not row["error"])
    assert without_seconds(facts) == without_seconds(facts_in(tmp_path / "here"))
    for name in kept:
        assert (folder / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
