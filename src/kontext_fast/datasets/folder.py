"""Items from a user's disk: a JSONL file, or a folder of images, each with a text file of its instruction.

A JSONL line is {"image": PATH, "instruction": TEXT} and, where there is one, "target", "mask", "kind",
"input_caption" and "output_caption". Paths are relative to the file.

In a folder, `cat.jpg` is edited as the first line of `cat.txt` says; `cat.target.png` and `cat.mask.png` are optional.
Folders in it are read alike. Texts are UTF-8, or in the encoding that their byte order mark states.

Entries that cannot be used are skipped with a reason; only a data set without any usable item is an error.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from kontext_fast.datasets.base import Dataset
from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.images import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from PIL.Image import Image

_PARTS = (".target", ".mask")
_TEXTS = ("kind", "input_caption", "output_caption")
_KEYS = frozenset({"image", "instruction", "target", "mask", *_TEXTS})


Source: TypeAlias = "Path | bytes | Image"
"""What an image is read from: a file, the content of one, or an image in memory."""


@dataclass(frozen=True)
class UserItem:
    """An item whose images are read on access, from disk, from what a table holds, or from memory."""

    id: str
    instruction: str
    image_source: Source
    target_source: Source | None = None
    mask_source: Source | None = None
    kind: str | None = None
    input_caption: str | None = None
    output_caption: str | None = None
    open: bool | None = None

    @property
    def image(self) -> Image:
        return _read(self.image_source)

    @property
    def target(self) -> Image | None:
        return None if self.target_source is None else _read(self.target_source)

    @property
    def mask(self) -> Image | None:
        return None if self.mask_source is None else _read(self.mask_source).convert("L")


Entry = tuple[str, Mapping[str, Any]]
"""Where an entry stands ("line 3") and its content, with absolute paths."""


def read_jsonl(file: Path) -> Dataset:
    """The items of a JSONL file. Raises InvalidInput where the file is unreadable or has no usable item."""
    return collect(file.stem, jsonl_entries(file, _checked), "write lines with an image and an instruction")


def read_folder(folder: Path) -> Dataset:
    """The items of a folder of images and text files. Raises InvalidInput where there is no usable item."""
    return collect(folder.resolve().name, _folder_entries(folder), "put a NAME.txt with an instruction beside NAME.jpg")


_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"))
_ENCODINGS = (*_MARKS, (codecs.BOM_UTF16_BE, "utf-16"), (codecs.BOM_UTF8, "utf-8-sig"))


def decoded(file: Path) -> str:
    """The text of `file`, in the encoding that its byte order mark states, else UTF-8.

    Raises OSError and UnicodeDecodeError.
    """
    content = file.read_bytes()
    return content.decode(next((name for mark, name in _ENCODINGS if content.startswith(mark)), "utf-8"))


def read_pairs(pairs: Iterable[tuple[Any, str]]) -> Dataset:
    """Items of pairs of image and instruction; an image is anything that `edit` takes. A repeated pair counts once.

    Raises InvalidInput, naming the pair, where one cannot be used, and where there is none.
    """
    from kontext_fast.pipeline.images import to_rgb

    items: dict[str, UserItem] = {}
    for number, pair in enumerate(pairs, start=1):
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[1], str) or not pair[1].strip():
            raise InvalidInput(f'Pair {number} is not an image and an instruction, such as ("a.jpg", "make it red").')
        try:
            image = to_rgb(pair[0])
        except InvalidInput as error:
            raise InvalidInput(f"Pair {number}: {error}") from None
        items.setdefault(key := content_id(image, pair[1]), UserItem(key, pair[1], image))
    if not items:
        raise InvalidInput("There are no items; give pairs of an image and an instruction.")
    return Dataset("pairs", [items[key] for key in sorted(items)])


def jsonl_entries(file: Path, read: Callable[[Any, Path], Mapping[str, Any]]) -> Iterator[Entry | str]:
    """Each line as `read` parses it, or one sentence that names the line and why it cannot be used."""
    try:
        text = decoded(file)
    except (OSError, UnicodeError):
        raise InvalidInput(f"{file} cannot be read; give an existing JSONL text file.") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", read(json.loads(line), file.parent)
        except (ValueError, RecursionError) as error:
            ours = isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError)
            what = str(error) if ours else "not valid JSON"
            yield f"line {number} is left out: {what}."


def collect(name: str, entries: Iterable[Entry | str], remedy: str) -> Dataset:
    """The usable items among `entries`, each once; `remedy` ends the error raised where there is none."""
    items: dict[str, tuple[str, UserItem]] = {}
    rejected: list[str] = []
    for entry in entries:
        if isinstance(entry, str):
            rejected.append(entry)
            continue
        where, content = entry
        try:
            item = _item(content)
        except (InvalidInput, ValueError) as error:
            rejected.append(f"{where} is left out: {str(error).rstrip('.')}.")
            continue
        if item.id in items:
            rejected.append(f"{where} is left out: it repeats the image and the instruction of {items[item.id][0]}.")
        else:
            items[item.id] = (where, item)
    if not items:
        first = f" ({len(rejected)} cannot be used, the first: {rejected[0]})" if rejected else ""
        raise InvalidInput(f"There is no item in {name}{first}; {remedy}.")
    return Dataset(name, [items[key][1] for key in sorted(items)], tuple(rejected))


def _checked(line: Any, folder: Path) -> Mapping[str, Any]:
    if not isinstance(line, dict):
        raise ValueError("it is not a JSON object")
    if unknown := sorted(line.keys() - _KEYS):
        raise ValueError(f"there is no key {unknown[0]!r}")
    for key in ("image", "instruction"):
        if not isinstance(line.get(key), str) or not line[key].strip():
            raise ValueError(f"it has no {key}")
    for key in _KEYS & line.keys():
        if line[key] is not None and not isinstance(line[key], str):
            raise ValueError(f"the {key} is not a text")
    return {
        key: folder / value if key in ("image", "target", "mask") else value
        for key, value in line.items()
        if value is not None
    }


def _folder_entries(folder: Path, inside: str = "") -> Iterator[Entry | str]:
    """The entries of `folder` and of the folders in it; `inside` is the way to it from the outermost one."""
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in visible if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()]
    for path in visible:
        if path.is_dir() and path.is_symlink():
            yield f"{inside}{path.name} is left out: it is a link to a folder."
        elif path.is_dir():
            yield from _folder_entries(path, f"{inside}{path.name}/")
        elif path.suffix.lower() not in IMAGE_SUFFIXES | {".txt"}:
            yield f"{inside}{path.name} is left out: it is neither an image nor a .txt file."
    parts = {file.stem: file for file in files if Path(file.stem).suffix in _PARTS}
    for file in files:
        if file.stem in parts:
            continue
        text = file.with_suffix(".txt")
        try:
            lines = decoded(text).strip().splitlines()
        except (OSError, UnicodeError):
            yield f"{inside}{file.name} is left out: {text.name} with its instruction cannot be read."
            continue
        if not lines:
            yield f"{inside}{file.name} is left out: {text.name} is empty."
            continue
        entry = {"image": file, "instruction": lines[0]}
        entry |= {part[1:]: parts[file.stem + part] for part in _PARTS if file.stem + part in parts}
        yield f"{inside}{file.name}", entry


def _item(content: Mapping[str, Any]) -> UserItem:
    image = _read(content["image"])
    for part in ("target", "mask"):
        if part in content and (size := _read(content[part]).size) != image.size:
            raise ValueError(
                f"the {part} has {size[0]}x{size[1]} pixels and the image has {image.width}x{image.height}"
            )
    return UserItem(
        id=content_id(image, content["instruction"]),
        instruction=content["instruction"],
        image_source=content["image"],
        target_source=content.get("target"),
        mask_source=content.get("mask"),
        **{key: content.get(key) for key in _TEXTS},
    )


def content_id(image: Image, instruction: str) -> str:
    """Hash of an RGB image's pixels and the instruction, so that a renamed file is the same item."""
    facts = f"{image.width}x{image.height}\n{instruction}\n".encode()
    return hashlib.sha256(facts + image.tobytes()).hexdigest()[:16]


def _read(source: Source) -> Image:
    from kontext_fast.pipeline.images import to_rgb

    return to_rgb(source)
