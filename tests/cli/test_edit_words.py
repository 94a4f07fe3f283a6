"""What the words of `kontext edit` mean, and where edits go."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from kontext_fast.cli.edit import images_of, outputs_of, read_words
from kontext_fast.cli.session import numbered
from kontext_fast.errors import InvalidInput


@pytest.fixture(autouse=True)
def _pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("one", "two", "empty"):
        Path(folder).mkdir()
    for name in ("a.png", "b.jpg", "a.edited.png", "one/x.png", "one/x.jpg", "one/x.edited.1.png", "two/x.png"):
        Image.new("RGB", (16, 16)).save(name)


BAD = {
    "instruction alone": (["make it red"], "kontext edit photo.jpg 'make it red'"),
    "image alone": (["a.png"], 'kontext edit a.png "make the car red"'),
    "folder alone": (["one"], "instruction is missing"),
    "instruction first": (["make it red", "a.png"], "kontext edit a.png 'make it red'"),
    "without quotes": (["a.png", "make", "it", "red"], 'kontext edit a.png "make it red"'),
    "address": (["https://example.com/a.png", "x"], "https://example.com/a.png is an address"),
    "missing": (["no.png", "x"], "no image no.png"),
    "one of two missing": (["a.png", "no.png", "b.jpg", "x"], "no image no.png"),
    "pattern without match": (["*.tiff", "x"], r"no image *.tiff"),
    "empty word": (["", "x"], "no image "),
    "NUL": (["a\0b", "x"], "no image "),
    "enormous": (["a" * 5000, "x"], "no image "),
}


@pytest.mark.parametrize(("words", "says"), BAD.values(), ids=BAD.keys())
def test_wrong_words_say_how_to_write_them(words: list[str], says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_words(words)
    assert says in str(caught.value)


def test_last_word_is_the_instruction_and_patterns_are_expanded() -> None:
    assert read_words(["a.png", "b.jpg", "x"]) == ([Path("a.png"), Path("b.jpg")], "x")
    assert read_words(["*.jpg", "one", "x"]) == ([Path("b.jpg"), Path("one")], "x")


def test_earlier_edits_beside_their_images_are_left_out() -> None:
    assert images_of([Path("a.edited.png"), Path("a.png"), Path("a.png")]) == [Path("a.png")]
    assert images_of([Path("a.edited.png")]) == [Path("a.edited.png")]
    assert images_of([Path("one")]) == [Path("one/x.jpg"), Path("one/x.png")]
    with pytest.raises(InvalidInput, match="empty has no images"):
        images_of([Path("empty")])


def outputs(images: list[str], out: str | None, count: int = 1) -> list[list[str]]:
    paths = [Path(image) for image in images]
    of_each = outputs_of(paths, Path(out) if out else None, count=count, into_folder=len(paths) > 1)
    return [[str(output) for output in of_image] for of_image in of_each.values()]


def test_edits_go_beside_their_images_or_where_told() -> None:
    assert outputs(["a.png"], None) == [["a.edited.png"]]
    assert outputs(["a.png"], None, count=2) == [["a.edited.1.png", "a.edited.2.png"]]
    assert outputs(["a.png"], "c.webp", count=2) == [["c.1.webp", "c.2.webp"]]
    assert outputs(["a.png"], "two") == [["two/a.edited.png"]]
    assert outputs(["a.png"], "new") == [["new/a.edited.png"]]
    assert outputs(["a.png", "b.jpg"], "new.d") == [["new.d/a.edited.png"], ["new.d/b.edited.png"]]


def test_images_of_one_name_keep_apart() -> None:
    assert outputs(["one/x.png", "one/x.jpg"], None) == [["one/x.png.edited.png"], ["one/x.jpg.edited.png"]]
    assert outputs(["one/x.png", "two/x.png"], None) == [["one/x.edited.png"], ["two/x.edited.png"]]
    with pytest.raises(InvalidInput, match="would both be"):
        outputs(["one/x.png", "two/x.png"], "new")


def test_edit_never_replaces_its_input() -> None:
    with pytest.raises(InvalidInput, match="would replace it"):
        outputs(["a.png"], "one/../a.png")
    with pytest.raises(InvalidInput, match="is a file"):
        outputs(["a.png", "b.jpg"], "b.jpg")


def test_number_stands_before_the_suffix() -> None:
    assert numbered(Path("d/a.b.png"), 3) == Path("d/a.b.3.png")
