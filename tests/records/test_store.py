from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from kontext_fast.errors import InvalidInput
from kontext_fast.records.addresses import place
from kontext_fast.records.samples_csv import COLUMNS, STAGES
from kontext_fast.records.schema import Score
from kontext_fast.records.store import (
    ResultStore,
    content_hash,
    read_stored_image,
    require_folder_for,
    write_atomically,
)
from tests import needs
from tests.records.builder import full, judged, record, result, sample, stored_verification, timed


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "out")


def rows(store: ResultStore) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(store.samples_file.read_text())))


def test_written_records_are_read_back(store: ResultStore) -> None:
    written = full(store)
    store.write(written)
    assert store.load() == written


def test_write_creates_the_folder_layout(store: ResultStore) -> None:
    store.write(result([]))
    for name in ("performance", "quality", "cost"):
        assert (store.folder / "visualizations" / name).is_dir()
    assert (store.folder / "reports").is_dir()
    assert (store.folder / "results" / "benchmark_results.json").is_file()


def test_find_takes_folder_results_folder_or_file(store: ResultStore) -> None:
    written = full(store)
    store.write(written)
    digest = written.items[0].image or ""
    for name in (".", "results", "results/benchmark_results.json"):
        opened = ResultStore.find(store.folder / name)
        assert opened.load() == written
        assert opened.folder.resolve() == store.folder.resolve()
        assert opened.image_path(digest).is_file()


def test_renamed_record_file_keeps_its_images(store: ResultStore) -> None:
    written = full(store)
    store.write(written)
    renamed = store.records_file.rename(store.results / "h200.json")
    opened = ResultStore.find(renamed)
    assert opened.load() == written
    assert opened.image_path(written.items[0].image or "").is_file()
    assert ResultStore.find(renamed.rename(store.folder / "h200.json")).folder == store.folder


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not readable JSON"),
        ("[" * 100_000, "not readable JSON"),
        ("[]", "not a kontext-fast record file"),
        ('{"raw_results": []}', "not a kontext-fast record file"),
        ('{"schema_version": true}', "not a kontext-fast record file"),
        ('{"schema_version": 1}', "kontext_fast_version: this key is missing"),
        ('{"schema_version": 3, "anything": 1}', r"file\.json was written .*: upgrade kontext-fast to read it\.$"),
    ],
)
def test_other_json_is_refused_in_one_sentence(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(InvalidInput, match=says) as error:
        ResultStore.find(path).load()
    assert "\n" not in str(error.value)


def test_steps_of_schema_1_are_read_as_full_or_skipped(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    store.write(result([timed("baseline", 1, [1.0], skipped=1)]))
    data = json.loads(store.records_file.read_text())
    stored = data["records"][0]["measurements"][0]["samples"][1]
    kinds = stored["step_kinds"]
    assert set(kinds) == {"full", "skipped"}
    data["schema_version"] = 1
    stored["step_kinds"] = ["refresh", "reuse", "skipped"]
    data["records"][0]["outputs"] = [{"item": "a", "seed": 0, "image": None, "step_kinds": ["refresh", "reuse"]}]
    store.records_file.write_text(json.dumps(data))
    loaded = store.load()
    assert loaded.schema_version == 2
    assert loaded.records[0].measurements[0].samples[1].step_kinds == ("full", "full", "skipped")
    assert loaded.records[0].outputs[0].step_kinds == ("full", "full")


def test_binary_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="not readable JSON"):
        ResultStore.find(path).load()


def test_missing_records_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no records in"):
        ResultStore.find(tmp_path)
    with pytest.raises(InvalidInput, match="does not exist"):
        ResultStore.find(tmp_path / "nothing")
    with pytest.raises(InvalidInput, match="no records in"):
        ResultStore(tmp_path).load()


def test_records_that_cannot_be_read_are_refused_with_the_reason(store: ResultStore) -> None:
    store.records_file.mkdir(parents=True)
    with pytest.raises(InvalidInput, match=re.escape(f"cannot be read ({os.strerror(errno.EISDIR)}): check")):
        store.load()


@needs.s3
def test_file_at_an_address_is_written_where_its_bucket_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    shop = place("memory://shop")
    try:
        require_folder_for(shop / "out" / "table.csv")
        write_atomically(shop / "out" / "table.csv", b"1,2")
        assert (shop / "out" / "table.csv").read_bytes() == b"1,2"
        monkeypatch.setattr(type(shop), "exists", lambda _: False)
        with pytest.raises(InvalidInput, match=r"There is no memory:.* for memory://shop/gone"):
            require_folder_for(shop / "gone" / "table.csv")
    finally:
        MemoryFileSystem.store.clear()


def test_image_is_stored_once_under_its_hash(store: ResultStore) -> None:
    image = Image.new("RGB", (4, 2), "red")
    digest = store.put_image(image)
    first = store.image_path(digest).stat()
    assert store.put_image(image.copy()) == digest
    assert store.image_path(digest).stat().st_mtime_ns == first.st_mtime_ns
    assert store.put_image(Image.new("RGB", (2, 4), "red")) != digest
    assert store.put_image(Image.new("RGB", (4, 2), "blue")) != digest
    with Image.open(store.image_path(digest)) as stored:
        assert stored.tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1", "LA"])
def test_put_image_takes_every_mode(store: ResultStore, mode: str) -> None:
    with Image.open(store.image_path(store.put_image(Image.new(mode, (3, 3))))) as stored:
        assert stored.size == (3, 3)


@pytest.mark.parametrize("digest", ["../../secret", "", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_image_path_refuses_anything_but_a_hash(store: ResultStore, digest: str) -> None:
    with pytest.raises(InvalidInput, match="not an image hash"):
        store.image_path(digest)


def test_scores_replace_earlier_ones_of_the_same_output(store: ResultStore) -> None:
    store.write(result([timed("baseline", 1, [1.0]), timed("cache", 1, [0.5])]))
    other = Score(item="a", seed=0, image="1" * 64, metric="judge_done", value=False)
    store.add_scores("cache-1", [*judged("a", "0" * 64, done=True, kept=False), other])
    store.add_scores("cache-1", judged("a", "0" * 64, done=True, kept=True))
    untouched, scored = store.load().records
    assert untouched.scores == ()
    assert scored.scores == (other, *judged("a", "0" * 64, done=True, kept=True))
    with pytest.raises(InvalidInput, match="no run"):
        store.add_scores("nobody", [])


def test_csv_has_every_sample_and_failed_run(store: ResultStore) -> None:
    pictures = ("0" * 64, "1" * 64)
    samples = [sample("a", 500.0, warmup=True), sample("a", 0.5, skipped=1, images=pictures), sample("b", 0.75)]
    ok = record("cache", 1, samples, labels=("one", "two"))
    failed = record("compile", 1, status="refused", reason="There is no C++ compiler, install g++.", checkpoint=None)
    store.write(result([ok, failed]))
    table = rows(store)
    assert tuple(table[0]) == COLUMNS
    assert [(row["warmup"], float(row["wall_s"])) for row in table[:3]] == [
        ("True", 500.0),
        ("False", 0.5),
        ("False", 0.75),
    ]
    assert table[1]["computed_steps"] == "3"
    assert table[1]["width_px"] == "128"
    assert table[1]["machine"] == "Imaginary CPU 9000"
    assert table[1]["steps_s"] == "0.1 0.1 0.1 0.1"
    assert table[1]["step_kinds"] == " ".join(samples[1].step_kinds)
    assert [table[1][f"{stage}_s"] for stage in STAGES] == [str(samples[1].stages_s[stage]) for stage in STAGES]
    assert b"\r" not in store.samples_file.read_bytes()
    run = ("checkpoint", "dtype", "load_s", "apply_s", "labels", "first_call_s", "true_cfg")
    assert [table[1][name] for name in run] == ["tiny", "float32", "4.0", "0.5", "one; two", "9.0", "1.0"]
    assert table[1]["images"] == " ".join(pictures)
    assert len(table) == 4
    assert (table[3]["status"], table[3]["reason"]) == ("refused", "There is no C++ compiler, install g++.")
    assert table[3]["wall_s"] == table[3]["warmup"] == table[3]["checkpoint"] == ""
    store.write(result([ok.model_copy(update={"measurements": ok.measurements * 2})]))
    assert rows(store) == [*table[:3], *table[:3]]


def test_csv_columns_are_stable_and_have_units() -> None:
    assert COLUMNS[:4] == ("run_id", "created_at", "round", "order")
    assert {"wall_s", "text_encode_s", "load_s", "width_px", "allocated_peak_bytes"} <= set(COLUMNS)
    assert len(set(COLUMNS)) == len(COLUMNS)


def test_failed_write_leaves_only_the_old_file(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(result([timed("baseline", 1, [1.0])]))
    before = store.records_file.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        store.write(result([]))
    assert store.records_file.read_bytes() == before
    assert not list(store.results.glob(".*"))


WRITER = """
import sys
from pathlib import Path
from kontext_fast.records.store import ResultStore
from tests.records.builder import result, timed
store = ResultStore(Path(sys.argv[1]))
records = [timed("baseline", i, [1.0] * 50) for i in range(100)]
versions = [result(records[:50]), result(records)]
print("ready", flush=True)
while True:
    for version in versions:
        store.write(version)
"""


def test_kill_at_any_time_leaves_a_complete_file(store: ResultStore) -> None:
    store.write(result([]))
    for delay_s in (0.0, 0.011, 0.023, 0.05, 0.08):
        command = [sys.executable, "-c", WRITER, str(store.folder)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(delay_s)
            writer.send_signal(signal.SIGKILL)
        assert len(store.load().records) in (0, 50, 100)
        json.loads(store.records_file.read_text())


def test_records_import_no_torch() -> None:
    code = (
        "import sys, kontext_fast.records.store, kontext_fast.stats.intervals, kontext_fast.stats.intervals\n"
        "sys.exit('torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_picture_under_the_hash_of_another_is_refused(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    digest = store.put_image(Image.new("RGB", (8, 8), "red"))
    path = store.image_path(digest)
    assert read_stored_image(path).getpixel((0, 0)) == (255, 0, 0)
    Image.new("RGB", (8, 8), "blue").save(path)
    with pytest.raises(InvalidInput, match="is not the one that was recorded"):
        read_stored_image(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_stored_image(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_stored_image(path)


def test_only_png_is_read_as_a_stored_picture(tmp_path: Path) -> None:
    """Another format is another file, whatever its pixels are."""
    store = ResultStore(tmp_path)
    path = store.image_path(store.put_image(Image.new("RGB", (8, 8), "red")))
    assert path.parent == tmp_path / "results" / "images"
    Image.new("RGB", (8, 8), "red").save(path, format="BMP")
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_stored_image(path)


def test_hash_of_values_has_no_order() -> None:
    assert content_hash({"a": 1, "b": {"c": 2, "d": 3}}) == content_hash({"b": {"d": 3, "c": 2}, "a": 1})


def test_margins_that_were_altered_afterwards_are_refused(tmp_path: Path) -> None:
    verification = stored_verification()
    store = ResultStore(tmp_path)
    store.write(result([]).model_copy(update={"verification": verification}))
    assert store.load().verification == verification
    wide = {**verification.margins, "min_items": 2}
    altered = verification.model_copy(update={"margins": wide})
    store.write(result([]).model_copy(update={"verification": altered}))
    with pytest.raises(
        InvalidInput, match=r"not those that were fixed before .*; restore the file, or verify again\.$"
    ):
        store.load()


@pytest.mark.parametrize(
    "error", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EIO], ids=errno.errorcode.get
)
def test_place_that_takes_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    require_folder_for(tmp_path / "new" / "image.png")
    with pytest.raises(InvalidInput, match=f"There is no folder {tmp_path / 'two'} for"):
        require_folder_for(tmp_path / "two" / "levels" / "image.png")
    assert not list(tmp_path.iterdir())

    def fail(*_: object, **__: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(InvalidInput, match=f"cannot be written, since {tmp_path}.*{os.strerror(error)}"):
        require_folder_for(tmp_path / "image.png")


def test_what_cannot_be_begun_ends_with_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no temporary file to take away, which must not hide why."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write_atomically(tmp_path / "file", b"")


def test_error_without_a_number_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> int:
        raise OSError("odd")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(InvalidInput, match=r"takes no file \(odd\)"):
        require_folder_for(tmp_path / "image.png")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc: run it on Linux")
def test_folder_that_the_system_writes_is_refused() -> None:
    with pytest.raises(InvalidInput, match="since /proc/self takes no file"):
        require_folder_for(Path("/proc/self/image.png"))
