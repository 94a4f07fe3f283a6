from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from kontext_fast.pipeline.images import read_origin


def test_image_is_generated_from_text_alone(kontext: Any) -> None:
    outcome = kontext("generate", "a red circle", "--steps", "1", "--checkpoint", "tiny", "--seed", "9")
    assert outcome.code == 0
    assert outcome.out.startswith("generated.png  128x128  ")
    with Image.open("generated.png") as image:
        assert image.size == (128, 128)
    assert read_origin("generated.png")["seed"] == "9"


def test_several_images_have_numbers_and_seeds(kontext: Any) -> None:
    line = ("generate", "a red circle", "--steps", "1", "--checkpoint", "tiny", "--seed", "9", "-n", "2", "-q")
    assert kontext(*line, "-o", "a.jpg").out.split() == ["a.1.jpg", "a.2.jpg"]
    assert [read_origin(f"a.{number}.jpg")["seed"] for number in (1, 2)] == ["9", "10"]


def test_description_is_not_drawn_by_tiny_unasked(kontext: Any) -> None:
    outcome = kontext("generate", "a red car")
    assert outcome.code == 3
    assert "--checkpoint tiny" in outcome.err


def test_json_of_text_to_image_has_no_reference(kontext: Any) -> None:
    options = ("--negative", "a star", "--true-cfg", "2", "--size", "96x64", "--json", "-o", "here.png")
    outcome = kontext("generate", "a red circle", "--steps", "2", "--checkpoint", "tiny", *options)
    (image,) = json.loads(outcome.out.splitlines()[-1])["images"]
    assert image["input"] is None
    assert image["size"]["reference_tokens"] == 0
    assert (image["size"]["width"], image["size"]["height"]) == (96, 64)
    assert len(image["step_kinds"]) == 2


def test_invalid_prompt_is_one_line_and_writes_nothing(kontext: Any) -> None:
    for arguments in (["  "], ["x", "--steps", "0"], ["x", "--size", "100x100"], ["x", "-o", "a.gif"]):
        outcome = kontext("generate", *arguments)
        assert (outcome.code, outcome.out) == (2, "")
        assert len(outcome.err.splitlines()) == 1
        assert not list(Path().iterdir())
