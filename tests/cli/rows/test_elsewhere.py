"""Folders, manifests and results behind addresses: the images and facts of this machine, in a bucket.

`memory://` of fsspec is a bucket of the process, `local://` one that several processes see; a server of S3 runs in the
slow test.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from kontext_fast.records import addresses
from kontext_fast.records.addresses import place
from tests import needs
from tests.cli.rows.test_on_ray import without_seconds
from tests.cli.rows.test_run import TINY, facts_in, interrupted_at_the_third_edit, pictures, written

pytestmark = needs.s3


@pytest.fixture
def bucket() -> Iterator[Any]:
    from fsspec.implementations.memory import MemoryFileSystem

    yield place("memory://shop")
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    addresses.require_writable.cache_clear()


def uploaded(folder: Path, there: Any) -> None:
    for file in filter(Path.is_file, folder.rglob("*")):
        target = there / file.relative_to(folder).as_posix()
        target.fs.pipe_file(target.path, file.read_bytes())


def facts_there(folder: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = parquet.read_table(BytesIO((folder / "facts.parquet").read_bytes())).to_pylist()
    return rows


def names_in(folder: Any) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_rows_of_a_bucket_are_those_of_this_machine(kontext: Any, tmp_path: Path, bucket: Any) -> None:
    local = tmp_path / "local"
    local.mkdir()
    rows = pictures(local / "in", 4)
    (local / "in" / "2.png").write_text("no image")
    rows[3]["image"] = "in/nowhere.png"
    manifest = written(local / "edits.jsonl", rows)
    uploaded(local, bucket)
    assert kontext("edit", "--manifest", manifest, *TINY).code == 2
    line = ("edit", "--manifest", f"{bucket}/edits.jsonl", *TINY, "--json")
    outcome = kontext(*line)
    assert outcome.code == 2
    assert [image["path"] for image in json.loads(outcome.out)["images"]] == [
        f"memory://shop/edits.edited/{number}.png" for number in (1, 3)
    ]
    there, here = bucket / "edits.edited", local / "edits.edited"
    assert names_in(there) == names_in(here) == ["1.png", "3.png", "facts.parquet"]
    for name in ("1.png", "3.png"):
        assert (there / name).read_bytes() == (here / name).read_bytes()
    facts = facts_there(there)
    assert [row["output"] for row in facts] == [row["output"] for row in facts_in(here)]
    assert "is not an image" in facts[1]["error"]
    assert "There is no file memory://shop/in/nowhere.png" in facts[3]["error"]

    # What is mended is made, and what is there keeps its facts.
    uploaded(pictures_again(tmp_path, 4), bucket / "in")
    rows[3]["image"] = "memory://shop/in/4.png"
    (bucket / "edits.jsonl").write_text("\n".join(map(json.dumps, rows)))
    again = json.loads(kontext(*line).out)
    assert [image["path"].rpartition("/")[2] for image in again["images"]] == ["2.png", "4.png"]
    assert [row for row in facts_there(there) if row["row"] in (1, 3)] == [facts[0], facts[2]]
    rows[0]["seed"] = 9
    (bucket / "edits.jsonl").write_text("\n".join(map(json.dumps, rows[:1])))
    assert "was made with seed '1': add --overwrite" in kontext(*line[:-1]).err


def pictures_again(folder: Path, count: int) -> Path:
    pictures(folder / "again", count)
    return folder / "again"


def test_interrupted_run_in_a_bucket_goes_on(
    kontext: Any, tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "in", 3)
    uploaded(tmp_path / "in", bucket / "in")
    calls = interrupted_at_the_third_edit(monkeypatch)
    line = (
        "edit",
        f"{bucket}/in",
        "make it red",
        *TINY,
        "-o",
        f"{bucket}/out",
        "--facts",
        f"{bucket}/out/facts.parquet",
    )
    assert kontext(*line).code == 130
    first = facts_there(bucket / "out")
    assert kontext(*line).code == 0
    assert (len(first), len(calls)) == (2, 4)
    assert facts_there(bucket / "out")[:2] == first
    assert names_in(bucket / "out") == [*(f"{number}.edited.png" for number in (1, 2, 3)), "facts.parquet"]


def test_lines_survive_a_process_that_is_killed(bucket: Any) -> None:
    lines, count = addresses.Lines(bucket / "parts"), addresses._LINES_OF_A_PART + 2
    for number in range(count):
        lines.append(b"%d\n" % number)
    parts = sorted((bucket / "parts").glob("*.jsonl"), key=str)
    assert b"".join(part.read_bytes() for part in parts) == b"".join(b"%d\n" % number for number in range(count))
    assert len(parts) == 2


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("zzz://shop/in", "zzz://shop/in is no known address"),
        ("gs://shop/in", "gs://shop/in needs a package .*gcsfs"),
        ("memory://shop/nothing", "There is no image memory://shop/nothing"),
        ("s3://shop/in", r"s3://shop/in cannot be reached \(.*credentials.*\); check the address, the credentials"),
    ],
)
def test_address_that_cannot_be_read_is_refused(
    kontext: Any, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    outcome = kontext("edit", address, "make it red", *TINY)
    assert outcome.code in (2, 3)
    assert re.search(message, outcome.err), outcome.err


def test_missing_package_names_the_extra(kontext: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "upath", None)
    outcome = kontext("edit", "--manifest", "s3://shop/edits.csv")
    assert (outcome.code, "pip install 'kontext-fast[s3]'" in outcome.err) == (3, True), outcome.err


@pytest.mark.slow
@needs.ray
@pytest.mark.timeout(900)
def test_actors_of_ray_write_to_a_bucket(kontext: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    pictures(tmp_path / "in", 10)
    here, there = tmp_path / "here", tmp_path / "there"
    line = ("edit", f"local://{tmp_path}/in", "make it red", *TINY, "--seed", 1)
    assert kontext(*line, "-o", here, "--facts", here / "facts.parquet").code == 0
    try:
        assert kontext(*line, "-o", f"local://{there}", "--ray", "-q").code == 0
    finally:
        import ray

        ray.shutdown()
    assert without_seconds(facts_in(there)) == without_seconds(facts_in(here))
    for row in facts_in(here):
        assert (here / row["output"]).read_bytes() == (there / row["output"]).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("moto_server") is None, reason="needs a server of S3: pip install 'moto[server]'")
def test_folder_of_a_server_of_s3(kontext: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3fs import S3FileSystem

    pictures(tmp_path / "in", 3)
    here = tmp_path / "here"
    server = subprocess.Popen(["moto_server", "-p", "0"], stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        while "Running on" not in (printed := server.stderr.readline()):
            assert printed, server.wait()
        for name, value in (
            ("ACCESS_KEY_ID", "x"),
            ("SECRET_ACCESS_KEY", "x"),
            ("ENDPOINT_URL", printed.split()[-1]),
        ):
            monkeypatch.setenv(f"AWS_{name}", value)
        S3FileSystem.clear_instance_cache()  # One of another test has looked for credentials, and found none.
        outcome = kontext("edit", "s3://shop/in", "make it red", *TINY)
        assert "There is no image s3://shop/in" in outcome.err
        bucket = place("s3://shop")
        bucket.mkdir()
        uploaded(tmp_path / "in", bucket / "in")
        line = ("edit", "s3://shop/in", "make it red", *TINY, "--seed", "1", "--facts", "s3://shop/out/facts.parquet")
        assert "There is no s3://typo/" in kontext(*line, "-o", "s3://typo/out").err
        for _ in range(2):
            assert kontext(*line, "-o", "s3://shop/out").code == 0
        assert kontext("edit", tmp_path / "in", "make it red", *TINY, "--seed", "1", "-o", here).code == 0
        assert names_in(bucket / "out") == [*names_in(here), "facts.parquet"]
        for name in names_in(here):
            assert (bucket / "out" / name).read_bytes() == (here / name).read_bytes()
    finally:
        server.terminate()
        server.wait()
