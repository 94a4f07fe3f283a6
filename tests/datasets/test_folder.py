"""Data sets from a user's disk: what is read, how items are addressed, and what is said of bad entries."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext_fast.datasets import read_dataset
from kontext_fast.datasets.base import Dataset
from kontext_fast.errors import InvalidInput


def _picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 32)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def _jsonl(folder: Path, *lines: dict[str, Any] | str) -> Path:
    path = folder / "edits.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def _ids(dataset: Dataset) -> list[str]:
    return [item.id for item in dataset.items]


def test_line_with_every_key_is_read(tmp_path: Path) -> None:
    for name, seed in (("cat", 1), ("goal", 2), ("where", 3)):
        _picture(tmp_path / f"{name}.png", seed)
    line = {
        "image": "cat.png",
        "instruction": "make it blue",
        "target": "goal.png",
        "mask": "where.png",
        "kind": "recolor",
        "input_caption": "a cat",
        "output_caption": "a blue cat",
    }
    dataset = read_dataset(_jsonl(tmp_path, line))
    (item,) = dataset.items
    assert dataset.name == "edits"
    assert dataset.rejected == ()
    assert (item.instruction, item.kind, item.open) == ("make it blue", "recolor", None)
    assert (item.input_caption, item.output_caption) == ("a cat", "a blue cat")
    assert item.target is not None
    assert item.target.tobytes() == Image.open(tmp_path / "goal.png").tobytes()
    assert item.mask is not None
    assert item.mask.mode == "L"


def test_item_id_depends_on_pixels_and_instruction(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    _picture(tmp_path / "one" / "a.png", 1)
    _picture(tmp_path / "one" / "b.png", 2)
    shutil.copy(tmp_path / "one" / "a.png", tmp_path / "two" / "zzz.png")
    Image.open(tmp_path / "one" / "b.png").save(tmp_path / "two" / "first.bmp")
    first = read_dataset(
        _jsonl(tmp_path / "one", {"image": "a.png", "instruction": "x"}, {"image": "b.png", "instruction": "x"})
    )
    second = read_dataset(
        _jsonl(tmp_path / "two", {"image": "first.bmp", "instruction": "x"}, {"image": "zzz.png", "instruction": "x"})
    )
    other = read_dataset(_jsonl(tmp_path / "one", {"image": "a.png", "instruction": "y"}))
    assert _ids(first) == _ids(second) == sorted(_ids(first))
    assert not set(_ids(first)) & set(_ids(other))


BAD: dict[str, tuple[Callable[[Path], dict[str, Any] | str], str]] = {
    "missing image": (lambda _: {"image": "nowhere.png", "instruction": "x"}, r"line 2 .*no image .*nowhere\.png"),
    "broken line": (lambda _: '{"image": "good.png", "instr', "line 2 is left out: not valid JSON"),
    "not an object": (lambda _: "[1, 2]", "line 2 .*not a JSON object"),
    "no instruction": (lambda _: {"image": "good.png", "instruction": "  "}, "line 2 .*no instruction"),
    "unknown key": (lambda _: {"image": "good.png", "instruction": "x", "taget": "a"}, "line 2 .*no key 'taget'"),
    "number for text": (lambda _: {"image": "good.png", "instruction": "x", "kind": 3}, "line 2 .*kind is not a text"),
    "duplicate": (lambda _: {"image": "copy.png", "instruction": "make it red"}, "line 2 .*repeats .* of line 1"),
    "target of another size": (
        lambda folder: {
            "image": "good.png",
            "instruction": "x",
            "target": _picture(folder / "t.png", 5, (20, 32)).name,
        },
        "line 2 .*target has 20x32 pixels and the image has 40x32",
    ),
    "mask of another size": (
        lambda folder: {"image": "good.png", "instruction": "x", "mask": _picture(folder / "m.png", 5, (40, 30)).name},
        "line 2 .*mask has 40x30 pixels",
    ),
    "no picture": (
        lambda folder: {"image": str((folder / "t.txt").write_text("hello") and "t.txt"), "instruction": "x"},
        "line 2 .*not an image",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_line_is_named_and_others_are_kept(case: str, tmp_path: Path) -> None:
    line, message = BAD[case]
    _picture(tmp_path / "good.png", 1)
    shutil.copy(tmp_path / "good.png", tmp_path / "copy.png")
    good = {"image": "good.png", "instruction": "make it red"}
    last = {"image": "good.png", "instruction": "make it green"}
    dataset = read_dataset(_jsonl(tmp_path, good, line(tmp_path), last))
    assert {item.instruction for item in dataset.items} == {"make it red", "make it green"}
    (reason,) = dataset.rejected
    assert reason == " ".join(reason.split())
    assert re.search(message, reason), reason


@pytest.mark.parametrize("text", ["", "\n\n", '{"image": "nowhere.png", "instruction": "x"}\n'])
def test_data_set_without_usable_items_is_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "edits.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=r"There is no item in edits.*write lines with an image"):
        read_dataset(path)


def test_folder_pairs_images_with_texts(tmp_path: Path) -> None:
    for name, seed in (("cat.jpg", 1), ("cat.target.png", 2), ("cat.mask.png", 3), ("dog.png", 4), ("mute.png", 5)):
        _picture(tmp_path / name, seed)
    (tmp_path / "cat.txt").write_text("make it blue\nmore\n")
    (tmp_path / "dog.txt").write_text("make it red\n")
    dataset = read_dataset(tmp_path)
    by_instruction = {item.instruction: item for item in dataset.items}
    assert set(by_instruction) == {"make it blue", "make it red"}
    assert by_instruction["make it blue"].target is not None
    assert by_instruction["make it blue"].mask is not None
    assert by_instruction["make it red"].target is None
    assert dataset.rejected == ("mute.png is left out: mute.txt with its instruction cannot be read.",)


def test_texts_with_a_byte_order_mark_are_the_same_items(tmp_path: Path) -> None:
    ids = []
    for encoding in ("utf-8", "utf-8-sig"):
        folder = tmp_path / encoding
        folder.mkdir()
        _picture(folder / "cat.png")
        (folder / "cat.txt").write_text("make it blue", encoding=encoding)
        lines = folder / "edits.jsonl"
        lines.write_text(json.dumps({"image": "cat.png", "instruction": "make it blue"}), encoding=encoding)
        ids += [_ids(read_dataset(lines))]
        lines.unlink()
        ids += [_ids(read_dataset(folder))]
    assert ids == [ids[0]] * 4


def test_folder_names_what_it_leaves_out(tmp_path: Path) -> None:
    for name in ("cat.png", "fox.gif", "owl.avif"):
        _picture(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f"make the {name} red")
    (tmp_path / "more").mkdir()
    (tmp_path / "dog.raw").write_bytes(b"")
    (tmp_path / "more" / "dog.raw").write_bytes(b"")
    (tmp_path / ".hidden").write_bytes(b"")
    dataset = read_dataset(tmp_path)
    assert len(dataset.items) == 3
    assert [line.partition(" ")[0] for line in dataset.rejected] == ["dog.raw", "more/dog.raw"]


def test_empty_and_missing_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"put a NAME\.txt"):
        read_dataset(tmp_path)
    with pytest.raises(InvalidInput, match="no data set"):
        read_dataset(tmp_path / "nowhere")
