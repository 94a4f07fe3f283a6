from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.png import PngFile, read_png_metadata
from kontext_fast.version import __version__


def test_saved_image_carries_its_origin(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "out.png"
    image = Image.effect_noise((32, 16), 50).convert("RGB")
    PngFile(path).save(image, seed=7, preset="classic", checkpoint="tiny", instruction="mach es gr\u00fcn")
    assert read_png_metadata(path) == {
        "software": "kontext-fast",
        "version": __version__,
        "seed": "7",
        "preset": "classic",
        "checkpoint": "tiny",
        "instruction": "mach es gr\u00fcn",
    }
    assert Image.open(path).tobytes() == image.tobytes()
    assert [entry.name for entry in path.parent.iterdir()] == ["out.png"]


def test_failed_save_leaves_nothing(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16))
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.png").mkdir()
    for name, words in (("file/out.png", "cannot be written"), ("folder.png", "folder"), ("out.jpg", "end in .png")):
        with pytest.raises(InvalidInput, match=words):
            PngFile(tmp_path / name).save(image, seed=0, preset="baseline", checkpoint="tiny")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.png"]


def test_interrupted_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        PngFile(path).save(Image.new("RGB", (16, 16)), seed=0, preset="baseline", checkpoint="tiny")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.png"]
