from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image

from kontext_fast.optimizations.acceleration import current
from kontext_fast.optimizations.presets import faster_presets
from kontext_fast.pipeline.edit import edit
from kontext_fast.pipeline.images import PngFile, read_png_metadata

QUICK = ("--steps", "1", "--checkpoint", "tiny", "--seed", "5")


def test_image_is_edited_beside_the_input(kontext: Any, picture: Path) -> None:
    outcome = kontext("edit", picture, "make it red", *QUICK)
    output = picture.with_name("cat.edited.png")
    assert (outcome.code, outcome.out) == (0, f"{output}\n")
    assert "144x96" in outcome.err
    assert "checkpoint tiny, preset faithful" in outcome.err
    assert outcome.err.splitlines()[-1] == faster_presets()
    with Image.open(output) as image:
        assert image.size == (144, 96)
    metadata = read_png_metadata(output)
    assert (metadata["seed"], metadata["preset"], metadata["checkpoint"]) == ("5", "faithful", "tiny")
    assert metadata["instruction"] == "make it red"


def test_image_is_opened_and_output_checked_once(kontext: Any, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def counted(name: str, function: Any) -> Any:
        return lambda *arguments, **options: (calls.update([name]), function(*arguments, **options))[1]

    monkeypatch.setattr(Image, "open", counted("open", Image.open))
    monkeypatch.setattr(PngFile, "__post_init__", counted("check", PngFile.__post_init__))
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


def test_default_checkpoint_without_gpu_is_tiny_with_reason(kontext: Any, picture: Path) -> None:
    outcome = kontext("edit", picture, "make it red", "--steps", "1")
    assert outcome.code == 0
    assert "checkpoint tiny" in outcome.err
    assert "there is no GPU" in outcome.err


def test_preset_is_applied_during_the_edit(kontext: Any, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_force: list[str | None] = []

    def watched(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        acceleration = current(pipe)
        in_force.append(acceleration.plan.preset if acceleration else None)
        return edit(pipe, *args, **kwargs)

    monkeypatch.setattr("kontext_fast.pipeline.edit.edit", watched)
    result = json.loads(kontext("edit", picture, "make it red", *QUICK, "--json", "--preset", "fuse_qkv").out)
    assert in_force == [result["preset"]] == ["fuse_qkv"]
    assert read_png_metadata(Path(result["images"][0]["path"]))["preset"] == "fuse_qkv"


def test_folder_is_edited_in_order_without_earlier_edits(kontext: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("b.png", "a.png", "a.jpg", "old.edited.png"):
        Image.new("RGB", (128, 128), "blue").save(folder / name)
    (folder / "notes.txt").write_text("no image")
    outcome = kontext("edit", folder, "make it red", *QUICK, "-o", tmp_path / "out")
    assert outcome.code == 0
    names = ["a.jpg.edited.png", "a.png.edited.png", "b.edited.png"]
    assert outcome.out.split() == [str(tmp_path / "out" / name) for name in names]
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == names


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
    assert "1 of 3 images were not edited" in total


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
    "output is not a PNG": (["cat.jpg", "x", "-o", "out.jpg"], 2, "end in .png"),
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
        [*command, "--steps", "1000"],
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
