"""What the rows of a manifest mean, in every format, and why a row is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kontext_fast.cli.rows import manifest as module
from kontext_fast.cli.rows.manifest import Defaults, Manifest, read_manifest
from kontext_fast.errors import InvalidInput, Refused
from kontext_fast.pipeline.edit import EditRequest

ROWS: list[dict[str, Any]] = [
    {"image": "a.png", "instruction": "make it red", "seed": 7, "guidance": 3.5, "size": "64x48"},
    {"image": "a.png", "instruction": "make it, in a word, blue", "output": "blue.webp", "preset": "turbo"},
    {"image": "a.png", "steps": 4, "negative": "fog", "true_cfg": 2.0, "lora": "s.safetensors:0.5,t.safetensors"},
]
COLUMNS = list(dict.fromkeys(name for row in ROWS for name in row))


@pytest.fixture(autouse=True)
def _home(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")


def read(file: Path, **options: Any) -> Manifest:
    given = {"checkpoint": "tiny", "preset": "faithful", "lora": (), "device": "cpu", "has_instruction": True} | options
    return read_manifest(file, file.parent / "out", Defaults(request=EditRequest("make it night", steps=2), **given))


def written(file: Path, rows: list[dict[str, Any]]) -> Path:
    if file.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table({name: [row.get(name) for row in rows] for name in COLUMNS}), file)
    elif file.suffix == ".jsonl":
        file.write_text("\n\n".join(map(json.dumps, rows)))
    else:
        mark = "," if file.suffix == ".csv" else "\t"
        cells = [COLUMNS, *([str(row.get(name, "")) for name in COLUMNS] for row in rows)]
        file.write_text("\n".join(mark.join(f'"{cell}"' for cell in line) for line in cells))
    return file


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_every_format_asks_for_the_same_edits(tmp_path: Path, kind: str) -> None:
    rows = read(written(tmp_path / f"edits.{kind}", ROWS))
    assert (list(rows.bad), list(rows.unused)) == ([], [])
    assert [(setup.checkpoint, setup.preset, setup.lora_names) for setup, _ in rows.work] == [
        ("tiny", "faithful", ()),
        ("tiny", "turbo", ()),
        ("tiny", "faithful", ("s.safetensors:0.5", "t.safetensors:1")),
    ]
    assert rows.work[2][0].lora[0] == f"{tmp_path / 's.safetensors'}:0.5"
    first, second, third = (job for _, jobs in rows.work for job in jobs)
    assert (first.source, first.row, first.file.path) == (tmp_path / "a.png", 1, tmp_path / "out" / "a.edited.1.png")
    assert first.asked == EditRequest("make it red", steps=2, seed=7, guidance=3.5, size=(64, 48))
    assert second.asked == EditRequest("make it, in a word, blue", steps=2)
    assert second.file.path == tmp_path / "out" / "blue.webp"
    assert third.asked == EditRequest("make it night", steps=4, negative="fog", true_cfg=2.0)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no image": ({"instruction": "x"}, "The row has no image"),
    "missing image": ({"image": "b.png"}, "There is no image"),
    "text as steps": ({"image": "a.png", "steps": "many"}, "The steps 'many' is not a number"),
    "half a step": ({"image": "a.png", "steps": 2.5}, "The steps 2.5 is not a whole number"),
    "truth as seed": ({"image": "a.png", "seed": True}, "The seed True is not a number"),
    "number as text": ({"image": "a.png", "instruction": 5}, "The instruction 5 is not a text"),
    "steps of none": ({"image": "a.png", "steps": 0}, "number of steps is 0"),
    "size": ({"image": "a.png", "size": "large"}, "WIDTHxHEIGHT"),
    "negative alone": ({"image": "a.png", "negative": "fog"}, "true CFG scale above 1"),
    "preset": ({"image": "a.png", "preset": "trubo"}, "did you mean turbo?"),
    "kind of file": ({"image": "a.png", "output": "a.gif"}, "does not end in"),
    "input as output": ({"image": "a.png", "output": "../a.png"}, "would replace it"),
    "output of another row": ({"image": "a.png", "output": "first.png"}, "is that of row 1, too"),
}


def test_bad_row_has_its_reason_and_stops_no_other(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "output": "first.png"}, *(row for row, _ in BAD.values())]
    file = tmp_path / "edits.jsonl"
    file.write_text("\n".join([*map(json.dumps, rows), "not json", "[1]", '{"image": "a.png", "instruction": "last"}']))
    manifest = read(file)
    assert [job.row for _, jobs in manifest.work for job in jobs] == [1, len(rows) + 3]
    reasons = {row.row: row.reason for row in manifest.bad}
    for number, (_, words) in enumerate(BAD.values(), 2):
        assert words in reasons[number]
    assert "not valid JSON" in reasons[len(rows) + 1]
    assert "not a JSON object" in reasons[len(rows) + 2]
    assert manifest.bad[2].values == {"image": "a.png"}


def test_row_without_instruction_needs_the_command_s(tmp_path: Path) -> None:
    file = written(tmp_path / "edits.jsonl", [{"image": "a.png"}])
    assert "no instruction" in read(file, has_instruction=False).bad[0].reason


def test_columns_of_diffusers_and_unknown_ones(tmp_path: Path) -> None:
    file = tmp_path / "edits.csv"
    file.write_text("File Name,Prompt,Num-Inference-Steps,colour\na.png,make it red,3.0,x\na.png,b,3,x,too many\n")
    manifest = read(file)
    ((_, (job,)),) = manifest.work
    assert job.asked == EditRequest("make it red", steps=3)
    assert list(manifest.unused) == ["colour"]
    assert "more cells" in manifest.bad[0].reason


def test_refusal_of_every_row_is_one_of_the_command(tmp_path: Path) -> None:
    file = written(tmp_path / "edits.jsonl", [{"image": "a.png"}] * 2)
    with pytest.raises(InvalidInput, match="did you mean turbo"):
        read(file, preset="trubo")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("edits.jsonl", "", "has no rows"),
        ("edits.csv", "image,instruction\n", "has no rows"),
        ("edits.xlsx", "x", "give a .jsonl, .csv, .tsv or .parquet file"),
        ("edits.parquet", "x", "no readable Parquet file"),
        ("edits.csv", 'image,instruction\n"a.png,x\n', "is not a table"),
        ("missing.csv", None, "cannot be read"),
    ],
)
def test_manifest_that_is_none_is_one_sentence(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInput, match=words):
        read(tmp_path / name)


def test_parquet_without_its_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "edits.parquet").write_bytes(b"PAR1")
    with pytest.raises(Refused, match=r"kontext-fast\[tables\]"):
        list(module.read_rows(tmp_path / "edits.parquet"))
