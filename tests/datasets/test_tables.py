"""Tables of edits: names of columns, encodings, folders of Hugging Face's imagefolder, and what is said of bad rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kontext_fast.datasets import read_dataset
from kontext_fast.errors import InvalidInput, Refused
from tests.datasets.test_folder import _picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With pictures a, b and c, and one of another size."""
    for seed, name in enumerate("abc"):
        _picture(tmp_path / f"{name}.png", seed)
    _picture(tmp_path / "large.png", 9, size=(64, 64))
    return tmp_path


@pytest.mark.parametrize("image", ["image", "file_name", "input_file_name", "Source Image", "original_image", "before"])
@pytest.mark.parametrize("instruction", ["instruction", "edit_prompt", "prompt", "text"])
def test_columns_are_known_by_the_names_of_data_sets(folder: Path, image: str, instruction: str) -> None:
    (folder / "edits.csv").write_text(f'{image},{instruction},edited_file_name\na.png,"make it red, now",b.png\n')
    dataset = read_dataset(folder / "edits.csv")
    (item,) = dataset.items
    assert (dataset.name, dataset.rejected) == ("edits", ())
    assert item.instruction == "make it red, now"
    assert item.target is not None
    assert item.image.tobytes() != item.target.tobytes()


ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")


def encoded(text: str, encoding: str) -> bytes:
    mark = "\ufeff" if encoding.endswith(("-le", "-be")) else ""
    return (mark + text).encode(encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_texts_are_read_in_every_marked_encoding(folder: Path, encoding: str, ending: str) -> None:
    instruction = "färbe es rot 红"
    (folder / "one.csv").write_bytes(encoded(f"image,instruction{ending}a.png,{instruction}{ending}", encoding))
    (folder / "one.tsv").write_bytes(encoded(f"image\tinstruction{ending}a.png\t{instruction}{ending}", encoding))
    line = json.dumps({"image": "a.png", "instruction": instruction}, ensure_ascii=False)
    (folder / "one.jsonl").write_bytes(encoded(line + ending, encoding))
    for name in ("one.csv", "one.tsv", "one.jsonl"):
        assert [item.instruction for item in read_dataset(folder / name).items] == [instruction]
    (folder / "inner").mkdir()
    _picture(folder / "inner" / "a.png")
    (folder / "inner" / "a.txt").write_bytes(encoded(instruction + ending, encoding))
    assert [item.instruction for item in read_dataset(folder / "inner").items] == [instruction]


def test_utf16_without_a_mark_is_refused(folder: Path) -> None:
    (folder / "one.csv").write_bytes("image,instruction\nä.png,x\n".encode("utf-16-le"))
    with pytest.raises(InvalidInput):
        read_dataset(folder / "one.csv")


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_imagefolder_is_read_by_its_list(folder: Path, name: str) -> None:
    rows = [{"file_name": "a.png", "text": "make it red", "id": "1"}, {"file_name": "b.png", "text": "", "id": "2"}]
    lines = [json.dumps(row) for row in rows] if name.endswith("jsonl") else ["file_name,text,id"]
    if name.endswith("csv"):
        lines += [",".join(row.values()) for row in rows]
    (folder / name).write_text("\n".join(lines))
    dataset = read_dataset(folder)
    assert dataset.name == folder.resolve().name
    assert [item.instruction for item in dataset.items] == ["make it red"]
    assert dataset.rejected == (
        f"line {2 if name.endswith('jsonl') else 3} is left out: it has no instruction.",
        "The column id is not used.",
    )


def test_folders_in_a_folder_are_read_with_it(folder: Path) -> None:
    for place in (folder / "x", folder / "x" / "y"):
        place.mkdir()
        _picture(place / "a.png", len(place.parts))
        _picture(place / "a.target.png", 7)
        (place / "a.txt").write_text(f"in {place.name}")
    (folder / "x" / "notes.md").write_text("")
    (folder / "again").symlink_to(folder)
    dataset = read_dataset(folder)
    assert {item.instruction for item in dataset.items} == {"in x", "in y"}
    assert all(item.target is not None for item in dataset.items)
    assert "x/notes.md is left out: it is neither an image nor a .txt file." in dataset.rejected
    assert "again is left out: it is a link to a folder." in dataset.rejected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("image,input_image,instruction\na.png,b.png,x\n", "image and input_image may both be the image"),
        ("picture,instruction\na.png,x\n", "it has no image"),
        ("image,instruction\nnowhere.png,x\n", "line 2 is left out"),
        ("image,instruction,target\na.png,x,large.png\n", "the target has 64x64 pixels"),
        ('image,instruction\n"a.png,x\n', "is not a table"),
        ("", "There is no item"),
        ("image,instruction\n", "There is no item"),
    ],
)
def test_bad_tables_are_refused_with_the_reason(folder: Path, content: str, words: str) -> None:
    (folder / "edits.csv").write_text(content)
    with pytest.raises(InvalidInput) as caught:
        read_dataset(folder / "edits.csv")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def content(folder: Path, name: str) -> bytes:
    return (folder / f"{name}.png").read_bytes()


def stored(folder: Path, name: str) -> dict[str, Any]:
    """As Hugging Face's datasets stores an image."""
    return {"bytes": content(folder, name), "path": f"{name}.png"}


def write_parquet(file: Path, rows: list[dict[str, Any]]) -> Path:
    from pyarrow import parquet

    file.parent.mkdir(exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), file)
    return file


FORMS: dict[str, Callable[[Path, str], Any]] = {
    "struct": stored,
    "bytes": content,
    "path": lambda _, name: f"{name}.png",
    "struct of a path": lambda _, name: {"bytes": None, "path": f"{name}.png"},
}


@pytest.mark.parametrize("form", FORMS)
def test_parquet_has_images_as_bytes_or_paths(folder: Path, form: str) -> None:
    image = FORMS[form]
    rows = [
        {
            "source_img": image(folder, name),
            "instruction": f"change {name}",
            "target_img": image(folder, "c"),
            "turn": 1,
        }
        for name in "ab"
    ]
    dataset = read_dataset(write_parquet(folder / "edits.parquet", rows))
    (folder / "edits.csv").write_text("image,instruction,target\na.png,change a,c.png\nb.png,change b,c.png\n")
    as_csv = read_dataset(folder / "edits.csv")
    assert [item.id for item in dataset.items] == [item.id for item in as_csv.items]
    for item, other in zip(dataset.items, as_csv.items, strict=True):
        assert item.image.tobytes() == other.image.tobytes()
        assert item.target is not None
        assert other.target is not None
        assert item.target.tobytes() == other.target.tobytes()
    assert dataset.rejected == ("The column turn is not used.",)


@pytest.mark.parametrize("inner", [".", "data"])
def test_parquet_files_of_a_folder_are_one_data_set(folder: Path, tmp_path_factory: Any, inner: str) -> None:
    place = tmp_path_factory.mktemp("set")
    for number, name in enumerate("ab"):
        rows = [
            {"image": stored(folder, name), "text": "make it red"},
            {"image": {"bytes": b"no image", "path": "x.png"}, "text": "x"},
        ]
        write_parquet(place / inner / f"train-{number:05}-of-00002.parquet", rows)
    dataset = read_dataset(place)
    assert dataset.name == place.name
    assert len(dataset.items) == 2
    assert len(dataset.rejected) == 2
    assert dataset.rejected[0].startswith("train-00000-of-00002.parquet, row 2 is left out: The input image is not")


def test_parquet_that_cannot_be_read_is_refused(folder: Path) -> None:
    file = write_parquet(folder / "edits.parquet", [{"image": "a.png", "instruction": "x"}])
    whole = file.read_bytes()
    for broken in (b"", b"PAR1", whole[: len(whole) // 2], whole[:-1]):
        file.write_bytes(broken)
        with pytest.raises(InvalidInput, match="no readable Parquet file"):
            read_dataset(file)
    write_parquet(file, [{"image": "a.png", "instruction": 7}])
    with pytest.raises(InvalidInput, match="row 1 is left out: the instruction is not a text"):
        read_dataset(file)


def test_parquet_without_its_package_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (folder / "edits.parquet").write_bytes(b"PAR1")
    with pytest.raises(Refused, match=r"kontext-fast\[tables\]"):
        read_dataset(folder / "edits.parquet")
