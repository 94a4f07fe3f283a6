"""`kontext showcase`: one strip, what it says, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from kontext_fast.cli.edit import images_of
from kontext_fast.cli.main import run
from kontext_fast.pipeline.images import read_origin
from tests.pipelines import picture

OPTIONS = ("--checkpoint", "tiny", "--device", "cpu", "--steps", "1", "--preset", "baseline", "--preset", "faithful")


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    picture().save("photo.png")
    return Path("photo.png")


def test_strip_stands_beside_the_image_with_its_origin(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["showcase", "photo.png", "make it red", *OPTIONS, "--seed", "7", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [preset["preset"] for preset in facts["presets"]] == ["baseline", "faithful"]
    assert facts["presets"][0]["factor"] == 1
    assert facts["seed"] == 7
    with Image.open(facts["path"]) as strip:
        assert strip.width == 16 + 3 * (256 + 16)
    origin = read_origin(facts["path"])
    assert (origin["preset"], origin["seed"], origin["checkpoint"]) == ("baseline,faithful", "7", "tiny")
    # A strip is no photo of the folder.
    assert images_of([Path()]) == [photo]
    assert run(["showcase", "photo.png", "make it red", *OPTIONS]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(["showcase", "photo.png", "make it red", *OPTIONS, "--overwrite"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("The strip is photo.showcase.png; its seed is ")
    assert "says nothing about how good real Kontext images look" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("photo.png", "make it red"), 3, "insist with --checkpoint tiny"),
        (("photo.png", "make it red", "--checkpoint", "tiny", "--preset", "fastest"), 2, "no preset 'fastest'"),
        (("photo.png", "x", "--checkpoint", "tiny", "--preset", "turbo,turbo"), 2, "named twice"),
        (("photo.png", "photo.png", "x", "--checkpoint", "tiny", "-o", "a.gif"), 2, "a.gif"),
        (("photo.png",), 2, "instruction is missing"),
        (("photo.png", "x", "--checkpoint", "tiny", "--lora", "none.safetensors"), 2, "no LoRA none.safetensors"),
    ],
)
def test_mistakes_are_refused_before_any_edit(
    photo: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, words: str
) -> None:
    assert run(["showcase", *arguments]) == code
    assert words in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == [photo.name]
