from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image

from kontext_fast.optimizations.acceleration import accelerate, current
from kontext_fast.optimizations.presets import faster_presets
from kontext_fast.pipeline.edit import EditRequest, edit
from kontext_fast.pipeline.images import ImageFile, Origin, read_origin
from kontext_fast.pipeline.load import load

QUICK = ("--steps", "1", "--checkpoint", "tiny", "--seed", "5")


def test_image_is_edited_beside_the_input(kontext: Any, picture: Path) -> None:
    outcome = kontext("edit", picture, "make it red", *QUICK)
    output = picture.with_name("cat.edited.png")
    assert outcome.code == 0
    line = re.fullmatch(r"(\S+)  144x96  [\d.]+ s  \(faithful, 1 step, seed 5\)\n", outcome.out)
    assert line
    assert line[1] == str(output)
    assert "checkpoint tiny, preset faithful" in outcome.err
    assert outcome.err.splitlines()[-1] == faster_presets()
    with Image.open(output) as image:
        assert image.size == (144, 96)
    facts = read_origin(output)
    assert (facts["seed"], facts["preset"], facts["checkpoint"]) == ("5", "faithful", "tiny")
    assert (facts["instruction"], facts["steps"]) == ("make it red", "1")


def test_image_is_opened_and_output_checked_once(kontext: Any, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def counted(name: str, function: Any) -> Any:
        return lambda *arguments, **options: (calls.update([name]), function(*arguments, **options))[1]

    monkeypatch.setattr(Image, "open", counted("open", Image.open))
    monkeypatch.setattr(ImageFile, "__post_init__", counted("check", ImageFile.__post_init__))
    assert kontext("edit", picture, "make it red", *QUICK).code == 0
    assert calls == {"open": 1, "check": 1}


def test_last_line_of_stdout_is_the_result_as_json(kontext: Any, picture: Path) -> None:
    outcome = kontext("edit", picture, "make it red", "-o", "new/out.png", "--size", "64x48", *QUICK, "--json")
    result = json.loads(outcome.out.splitlines()[-1])
    assert outcome.err == ""
    (image,) = result["images"]
    assert (image["path"], image["seed"], image["input"]) == (str(Path("new/out.png")), 5, str(picture))
    assert (image["size"]["width"], image["size"]["height"], image["size"]["image_tokens"]) == (64, 48, 12)
    assert image["step_kinds"] == ["full"]
    assert image["seconds"] > 0
    assert result["checkpoint"]["name"] == "tiny"
    assert result["failed"] == []
    assert Path("new/out.png").is_file()


def test_picture_is_not_edited_by_tiny_unasked(kontext: Any, picture: Path) -> None:
    outcome = kontext("edit", picture, "make it red", "--steps", "1")
    assert (outcome.code, outcome.out) == (3, "")
    assert "there is no GPU" in outcome.err
    assert "insist with --checkpoint tiny" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert [entry.name for entry in picture.parent.iterdir()] == ["cat.jpg"]


def test_preset_is_applied_during_the_edit(kontext: Any, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_force: list[str | None] = []

    def watched(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        acceleration = current(pipe)
        in_force.append(acceleration.plan.preset if acceleration else None)
        return edit(pipe, *args, **kwargs)

    monkeypatch.setattr("kontext_fast.pipeline.edit.edit", watched)
    result = json.loads(kontext("edit", picture, "make it red", *QUICK, "--json", "--preset", "fuse_qkv").out)
    assert in_force == [result["preset"]] == ["fuse_qkv"]
    assert read_origin(result["images"][0]["path"])["preset"] == "fuse_qkv"


def test_folder_is_edited_in_order_without_earlier_edits(kontext: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("b.png", "a.png", "a.jpg", "old.edited.png"):
        Image.new("RGB", (128, 128), "blue").save(folder / name)
    (folder / "notes.txt").write_text("no image")
    outcome = kontext("edit", folder, "make it red", *QUICK, "-o", tmp_path / "out")
    assert outcome.code == 0
    names = ["a.jpg.edited.png", "a.png.edited.png", "b.edited.png"]
    lines = [line.split("  ") for line in outcome.out.splitlines()]
    assert [line[0] for line in lines] == ["1 of 3", "2 of 3", "3 of 3"]
    assert [line[1] for line in lines] == [str(tmp_path / "out" / name) for name in names]
    assert re.search(r"3 images in [\d.]+ s, [\d.]+ s each", outcome.err)
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == names


def test_second_run_makes_only_what_is_missing(kontext: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (128, 128), "blue").save(folder / name)
    line = ("edit", folder, "make it red", "--steps", "1", "--checkpoint", "tiny")
    assert kontext(*line).code == 0
    (folder / "b.edited.png").unlink()
    before = (folder / "a.edited.png").read_bytes()
    again = json.loads(kontext(*line, "--json").out)
    assert [Path(image["path"]).name for image in again["images"]] == ["b.edited.png"]
    assert again["skipped"] == [str(folder / "a.edited.png")]
    assert (folder / "a.edited.png").read_bytes() == before
    nothing_left = kontext(*line)
    assert (nothing_left.code, nothing_left.out) == (0, "")
    assert "All 2 images are there already" in nothing_left.err
    # A newer input and --overwrite make it again.
    os.utime(folder / "a.png", (2_000_000_000, 2_000_000_000))
    assert [Path(image["path"]).name for image in json.loads(kontext(*line, "--json").out)["images"]] == [
        "a.edited.png"
    ]
    assert len(json.loads(kontext(*line, "--overwrite", "--json").out)["images"]) == 2


@pytest.mark.parametrize(
    ("made", "asked", "words"),
    [
        ({}, ["--seed", "6"], "made with seed '5'"),
        ({}, ["--preset", "fuse_qkv"], "made with preset 'faithful'"),
        ({}, ["--guidance", "3"], "made with guidance '2.5'"),
        ({}, ["--size", "64x64"], "made without size"),
        ({"lora": ("a.safetensors:1",)}, [], "made with lora 'a.safetensors:1'"),
        ({"instruction": "make it blue"}, [], "made with instruction 'make it blue'"),
        ({"checkpoint": "other"}, [], "made with the checkpoint other"),
        (None, [], "not made by kontext-fast"),
    ],
)
def test_file_made_otherwise_is_kept_unless_overwritten(
    kontext: Any, picture: Path, made: dict[str, Any] | None, asked: list[str], words: str
) -> None:
    output = picture.with_name("cat.edited.png")
    image = Image.new("RGB", (16, 16))
    facts: dict[str, Any] = {
        "instruction": "make it red",
        "preset": "faithful",
        "checkpoint": "tiny",
        "steps": 1,
        "guidance": 2.5,
        "seed": 5,
    }
    if made is None:
        image.save(output)
    else:
        ImageFile(output).save(image, Origin(**facts | made))
    before = output.read_bytes()
    outcome = kontext("edit", picture, "make it red", *QUICK, *asked)
    assert outcome.code == 2
    assert words in outcome.err
    assert "--overwrite" in outcome.err
    assert output.read_bytes() == before


def test_several_images_and_formats_in_one_line(kontext: Any, picture: Path, tmp_path: Path) -> None:
    other = tmp_path / "dog.png"
    Image.new("RGB", (128, 128), "blue").save(other)
    outcome = kontext("edit", picture, other, "make it red", *QUICK, "-q", "-o", "all", "-n", "2")
    assert outcome.err == ""
    assert outcome.out.split() == [f"all/{name}.edited.{number}.png" for name in ("cat", "dog") for number in (1, 2)]
    assert [read_origin(path)["seed"] for path in outcome.out.split()] == ["5", "6", "5", "6"]
    single = kontext("edit", picture, "make it red", *QUICK, "-q", "-o", "cat.webp")
    assert (single.code, single.out) == (0, "cat.webp\n")
    assert read_origin("cat.webp")["instruction"] == "make it red"


def test_images_are_stitched_to_one_input(kontext: Any, picture: Path, tmp_path: Path) -> None:
    other = tmp_path / "hat.png"
    Image.new("RGB", (100, 200), "blue").save(other)
    line = ("edit", picture, other, "put them together", *QUICK, "--stitch", "-o", "both.png")
    outcome = kontext(*line)
    with Image.open(picture) as first:
        height = first.height
        width = first.width + round(height / 2)
    assert f"2 images are joined side by side to {width}x{height}." in outcome.err
    assert Path("both.png").is_file()
    request = EditRequest("put them together", [picture, other], steps=1, seed=5)
    pipe = load("tiny", device="cpu").pipe
    with accelerate(pipe, "faithful", quiet=True), Image.open("both.png") as stored:
        assert stored.tobytes() == edit(pipe, request).image.tobytes()
    assert read_origin(Path("both.png"))["images"] == "2"
    assert json.loads(kontext(*line, "--json").out)["images"] == []
    os.utime(other, (time.time() + 60, time.time() + 60))
    assert len(json.loads(kontext(*line, "--json").out)["images"]) == 1
    alone = kontext("edit", picture, "x", "--stitch", *QUICK)
    assert alone.code == 2
    assert "--stitch joins several images" in alone.err


def test_names_of_diffusers_are_understood(kontext: Any, picture: Path) -> None:
    words = ("--num-inference-steps", "2", "--guidance-scale", "3", "--true-cfg-scale", "2")
    outcome = kontext("edit", picture, "x", "--checkpoint", "tiny", *words, "--negative-prompt", "a star", "-q")
    facts = read_origin(outcome.out.strip())
    assert (facts["steps"], facts["guidance"], facts["true_cfg"], facts["negative"]) == ("2", "3.0", "2.0", "a star")


def test_broken_image_does_not_stop_a_folder(kontext: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_text("no image")
    for name in ("b.png", "c.png"):
        Image.new("RGB", (128, 128), "blue").save(folder / name)
    outcome = kontext("edit", folder, "make it red", *QUICK, "--json")
    assert outcome.code == 2
    result = json.loads(outcome.out.splitlines()[-1])
    assert [Path(image["path"]).name for image in result["images"]] == ["b.edited.png", "c.edited.png"]
    assert [Path(entry["input"]).name for entry in result["failed"]] == ["a.png"]
    broken, total = outcome.err.splitlines()
    assert "a.png is not an image" in broken
    assert broken.startswith("1 of 3  ")
    assert "1 of 3 images were not made" in total


BAD = {
    "missing image": (["missing.png", "x"], 2, "no image"),
    "unreadable image": (["broken.png", "x"], 2, "not an image"),
    "tiny image": (["dot.png", "x", *QUICK], 2, "too small"),
    "folder without images": (["empty", "x"], 2, "has no images"),
    "empty instruction": (["cat.jpg", ""], 2, "instruction is empty"),
    "zero steps": (["cat.jpg", "x", "--steps", "0"], 2, "steps is 0"),
    "negative size": (["cat.jpg", "x", "--size", "-64x64"], 2, "not positive"),
    "not a size": (["cat.jpg", "x", "--size", "large"], 2, "WIDTHxHEIGHT"),
    "size not a multiple of 16": (["cat.jpg", "x", "--size", "100x128"], 2, "96x128 or 112x128"),
    "enormous size": (["cat.jpg", "x", "--size", "16384x16384", *QUICK], 2, "at most 512x512"),
    "unknown preset": (["cat.jpg", "x", "--preset", "warp"], 2, "warp"),
    "unknown checkpoint": (["cat.jpg", "x", "--checkpoint", "huge"], 2, "use tiny, random"),
    "unreachable checkpoint": (["cat.jpg", "x", "--checkpoint", "org/name"], 2, "or use tiny"),
    "random without a GPU": (["cat.jpg", "x", "--checkpoint", "random", "--device", "cpu"], 3, "34 GiB"),
    "unknown device": (["cat.jpg", "x", "--device", "tpu"], 2, "use cpu, cuda"),
    "negative seed": (["cat.jpg", "x", "--seed", "-1"], 2, "seed is -1"),
    "negative guidance": (["cat.jpg", "x", "--guidance", "-1"], 2, "guidance is -1"),
    "true CFG without a negative": (["cat.jpg", "x", "--true-cfg", "3"], 2, "needs a negative prompt"),
    "missing LoRA": (["cat.jpg", "x", "--lora", "no.safetensors:0.5", *QUICK], 2, "no LoRA no.safetensors;"),
    "output of another kind": (["cat.jpg", "x", "-o", "out.gif"], 2, "end in .png, .jpg, .jpeg, .webp"),
    "output two folders down": (["cat.jpg", "x", "-o", "a/b/out.png"], 2, "There is no folder a for"),
    "output is the input": (["dot.png", "x", "-o", "dot.png"], 2, "would replace it"),
    "no images": (["cat.jpg", "x", "-n", "0"], 2, "number of images is 0"),
    "two presets": (["cat.jpg", "x", "--preset", "fast", "--preset", "turbo", *QUICK], 2, "fast and turbo"),
    "output folder is a file": (["cat.jpg", "x", "-o", "broken.png/out.png", *QUICK], 2, "cannot be written"),
    "too long an instruction": (["cat.jpg", "red " * 300, *QUICK], 2, "shorten it"),
}


@pytest.mark.parametrize(("arguments", "code", "words"), BAD.values(), ids=BAD.keys())
def test_invalid_edit_is_one_line_and_writes_nothing(
    kontext: Any, picture: Path, arguments: list[str], code: int, words: str
) -> None:
    folder = picture.parent
    (folder / "broken.png").write_text("no image")
    (folder / "empty").mkdir()
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    before = sorted(folder.rglob("*"))
    outcome = kontext("edit", *arguments)
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 1
    assert words in outcome.err
    assert sorted(folder.rglob("*")) == before


def test_running_out_of_memory_is_one_line(kontext: Any, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A real failure of the real allocator, at the place where a real one comes.
    monkeypatch.setattr(FluxTransformer2DModel, "forward", lambda *_args, **_kwargs: torch.empty(2**50))
    outcome = kontext("edit", picture, "make it red", "--preset", "baseline", *QUICK)
    assert (outcome.code, outcome.out) == (3, "")
    assert len(outcome.err.splitlines()) == 1
    assert "smaller size" in outcome.err
    assert [entry.name for entry in picture.parent.iterdir()] == ["cat.jpg"]


PROGRAM = """
import torch
from kontext_fast.cli.main import main

def announce(module, arguments, output):
    if type(module).__name__ == "FluxTransformer2DModel":
        print("step", flush=True)

torch.nn.modules.module.register_module_forward_hook(announce)
main()
"""


def test_ctrl_c_in_mid_edit_leaves_one_line_and_no_file(picture: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROGRAM, "edit", str(picture), "make it red", "--checkpoint", "tiny"]
    process = subprocess.Popen(
        # A preset on the engine would refuse the hook that announces the steps.
        [*command, "--steps", "1000", "--preset", "baseline"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == "step\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors == "Interrupted; nothing was left half-written.\n"
    assert [entry.name for entry in picture.parent.iterdir()] == ["cat.jpg"]
