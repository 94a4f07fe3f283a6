"""Refusals of files that people have: what the message names in its place is given, and then it works."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from kontext_fast.datasets import read_dataset
from kontext_fast.errors import CheckpointUnavailable, InvalidInput
from kontext_fast.pipeline.edit import EditRequest
from kontext_fast.pipeline.folder import TINY_FOLDER
from kontext_fast.pipeline.images import ImageFile, to_rgb
from kontext_fast.pipeline.load import load
from kontext_fast.pipeline.lora import load_lora
from kontext_fast.pipeline.sizes import check_requested_size

WEIGHTS = load_file(TINY_FOLDER / "transformer" / "diffusion_pytorch_model.safetensors")
FIRST = "transformer_blocks.0.attn.to_q.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_FOLDER, tmp_path / "my-kontext"))


def a_lora(file: Path) -> None:
    out, width = WEIGHTS[FIRST].shape
    layer = "transformer.transformer_blocks.0.attn.to_q"
    save_file({f"{layer}.lora_A.weight": torch.ones(1, width), f"{layer}.lora_B.weight": torch.ones(out, 1)}, file)


def int8(file: Path) -> None:
    save_file({**WEIGHTS, FIRST: WEIGHTS[FIRST].to(torch.int8)}, file)


def an_autoencoder(file: Path) -> None:
    shutil.copy(TINY_FOLDER / "vae" / "diffusion_pytorch_model.safetensors", file)


def a_fill_transformer(file: Path) -> None:
    wide = torch.zeros(len(WEIGHTS["x_embedder.weight"]), 384)
    save_file({**WEIGHTS, "x_embedder.weight": wide}, file)


def cut_off(file: Path) -> None:
    whole = (TINY_FOLDER / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    file.write_bytes(whole[: len(whole) // 2])


REMEDIES = {
    int8: "give a bf16, fp8 or GGUF file",
    an_autoencoder: "give the transformer of FLUX.1-Kontext",
    a_fill_transformer: "put it into the folder of its own pipeline",
    cut_off: "copy it again",
}


@pytest.mark.parametrize("write", REMEDIES, ids=lambda write: write.__name__)
def test_file_that_the_remedy_names_loads(folder: Path, write: Callable[[Path], None]) -> None:
    file = folder / "own.safetensors"
    write(file)
    with pytest.raises(CheckpointUnavailable, match=REMEDIES[write]):
        load(str(file), device="cpu")
    save_file(WEIGHTS, file)
    assert load(str(file), device="cpu").pipe.transformer.config.in_channels == 64


def test_lora_given_as_a_checkpoint_is_merged_as_a_lora(folder: Path) -> None:
    a_lora(folder / "style.safetensors")
    with pytest.raises(CheckpointUnavailable, match="pass it as --lora"):
        load(str(folder / "style.safetensors"), device="cpu")
    pipe = load(str(folder), device="cpu").pipe
    with load_lora(pipe, folder / "style.safetensors"):
        assert torch.allclose(pipe.transformer.get_parameter(FIRST), WEIGHTS[FIRST].float() + 1)


def test_transformer_alone_loads_in_the_place_that_is_named(folder: Path) -> None:
    """As step-distilled ones of Kontext are published."""
    alone = folder.parent / "lightning"
    (folder / "transformer").rename(alone)
    with pytest.raises(CheckpointUnavailable, match="put it into a diffusers folder"):
        load(str(alone), device="cpu")
    alone.rename(folder / "lightning")
    assert load(str(folder / "lightning"), device="cpu").pipe.transformer.config.in_channels == 64


def test_policy_of_pi_flow_is_called_what_it_is(folder: Path) -> None:
    """Its folder has a LoRA, and output layers of a class of its own, which a sampler of its own reads."""
    adapter = folder / "gmflux_k8_piid_4step"
    adapter.mkdir()
    a_lora(adapter / "diffusion_pytorch_model.safetensors")
    means = {"proj_out_means.weight": torch.ones(8 * 64, 4), "proj_out_logweights.weight": torch.ones(32, 4)}
    file = adapter / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(file), **means}, file)
    (adapter / "config.json").write_text('{"_class_name": "GMFluxTransformer2DModel"}')
    with pytest.raises(CheckpointUnavailable, match=r"is a GMFluxTransformer2DModel alone.*give one, or the folder"):
        load(str(adapter), device="cpu")
    pipe = load(str(folder), device="cpu").pipe
    with pytest.raises(InvalidInput, match=r"another model, pi-Flow.*give another one"), load_lora(pipe, adapter):
        pass


@pytest.mark.parametrize("remedy", ["bf16", "fp8"])
def test_onnx_is_replaced_by_what_the_remedy_names(folder: Path, remedy: str) -> None:
    (folder / "model.onnx").write_bytes(b"an ONNX graph")
    with pytest.raises(CheckpointUnavailable, match=r"is not a \.safetensors or \.gguf file"):
        load(str(folder / "model.onnx"), device="cpu")
    dtype = torch.bfloat16 if remedy == "bf16" else torch.float8_e4m3fn
    save_file(
        {name: value.to(dtype if value.dim() == 2 else value.dtype) for name, value in WEIGHTS.items()},
        folder / "own.safetensors",
    )
    assert load(str(folder / "own.safetensors"), device="cpu").pipe.transformer is not None


def test_folder_with_its_tokenizer_copied_again_loads(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(CheckpointUnavailable, match="in its folder tokenizer"):
        load(str(folder), device="cpu")
    shutil.copytree(TINY_FOLDER / "tokenizer", folder / "tokenizer")
    assert load(str(folder), device="cpu").pipe.tokenizer is not None


def as_bin(folder: Path) -> Callable[[], None]:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    pickled = file.with_suffix(".bin")
    torch.save(load_file(file), pickled)
    file.unlink()
    return lambda: save_file(torch.load(pickled, weights_only=True), file)


def in_two_variants(folder: Path) -> Callable[[], None]:
    def rename(model: str, old: str, new: str) -> None:
        place = folder / model / f"diffusion_pytorch_model{old}.safetensors"
        place.rename(place.with_name(f"diffusion_pytorch_model{new}.safetensors"))

    rename("vae", "", ".fp16")
    rename("transformer", "", ".bf16")
    return lambda: (rename("vae", ".fp16", ""), rename("transformer", ".bf16", ""))[0]


def damaged(name: str, content: str) -> Callable[[Path], Callable[[], None]]:
    def damage(folder: Path) -> Callable[[], None]:
        (folder / name).write_text(content)
        return lambda: shutil.copy(TINY_FOLDER / name, folder / name) and None

    return damage


FOLDERS = {
    "convert it to safetensors": as_bin,
    "give all parts in one of them": in_two_variants,
    r"The model_index\.json of .* is damaged; download it again": damaged("model_index.json", "{"),
    "download its configuration again": damaged(
        "scheduler/scheduler_config.json", '{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0.0}'
    ),
}


def test_folders_mended_as_the_remedies_say_load(folder: Path) -> None:
    for remedy, damage in FOLDERS.items():
        mend = damage(folder)
        with pytest.raises(CheckpointUnavailable, match=remedy):
            load(str(folder), device="cpu")
        mend()
    with pytest.raises(CheckpointUnavailable, match=r"has no model_index\.json; give the folder that holds it"):
        load(str(folder / "tokenizer"), device="cpu")
    assert load(str(folder), device="cpu").pipe.transformer.config.in_channels == 64


def two_updates(place: Path) -> Path:
    a_lora(file := place / "a.safetensors")
    weights = load_file(file)
    save_file({**weights, **{key.replace("0.attn", "0_attn"): value.clone() for key, value in weights.items()}}, file)
    return file


def a_pickled_lora(place: Path) -> Path:
    torch.save({}, place / "a.bin")
    return place / "a.bin"


def a_folder_of_two(place: Path) -> Path:
    for name in "bc":
        a_lora(place / f"{name}.safetensors")
    return place


def damaged_settings(place: Path) -> Path:
    a_lora(file := place / "adapter_model.safetensors")
    (place / "adapter_config.json").write_text("{")
    return file


def without_settings(file: Path) -> Path:
    (file.parent / "adapter_config.json").write_text("{}")
    return file


LORAS: dict[Callable[[Path], Path], tuple[str, Callable[[Path], Path]]] = {
    two_updates: ("give one of them", lambda file: (a_lora(file), file)[1]),
    a_pickled_lora: ("convert it", lambda file: (a_lora(file.with_suffix(".safetensors")), file)[1]),
    a_folder_of_two: ("name the LoRA itself", lambda place: place / "b.safetensors"),
    damaged_settings: ("copy the LoRA again", without_settings),
}


@pytest.mark.parametrize("write", LORAS, ids=lambda write: write.__name__)
def test_lora_given_as_the_remedy_says_is_merged(tiny: Any, tmp_path: Path, write: Callable[[Path], Path]) -> None:
    remedy, mend = LORAS[write]
    path = write(tmp_path)
    with pytest.raises(InvalidInput, match=remedy), load_lora(tiny, path):
        pass
    path = mend(path)
    with load_lora(tiny, path.with_suffix(".safetensors")):
        assert torch.allclose(tiny.transformer.get_parameter(FIRST), WEIGHTS[FIRST].float() + 1)
    assert torch.equal(tiny.transformer.get_parameter(FIRST), WEIGHTS[FIRST].float())


def test_requests_said_as_the_remedies_say_are_accepted() -> None:
    for options, remedy, mended in (
        ({"true_cfg": 2.0}, "give one, or leave the scale at 1", {"true_cfg": 2.0, "negative": "blur"}),
        ({"negative": "blur"}, "give one, for example 2", {"true_cfg": 2.0, "negative": "blur"}),
        ({"steps": 0}, "give a whole number from 1", {"steps": 1}),
        ({"guidance": -1.0}, "for example 2.5", {"guidance": 2.5}),
        ({"seed": -1}, "give a whole number from 0", {"seed": 0}),
    ):
        with pytest.raises(InvalidInput, match=remedy):
            EditRequest("make it red", **options)
        assert EditRequest("make it red", **mended).steps >= 1


def test_table_without_a_mark_is_read_in_utf_8(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    table, text = tmp_path / "edits.csv", "image,instruction\na.png,färbe es rot\n"
    table.write_bytes(text.encode("utf-16-le"))
    with pytest.raises(InvalidInput, match="for example in UTF-8"):
        read_dataset(table)
    table.write_text(text, encoding="utf-8")
    assert [item.instruction for item in read_dataset(table).items] == ["färbe es rot"]


def saved(image: Any, file: Path) -> Image.Image:
    Image.fromarray(image).save(file)
    return to_rgb(file)


def test_heic_photo_saved_as_the_remedy_says_is_read(tmp_path: Path) -> None:
    file = tmp_path / "photo.heic"
    file.write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(64))
    with pytest.raises(InvalidInput, match="save the photo as JPEG"):
        to_rgb(file)
    assert saved(np.zeros((32, 32, 3), np.uint8), tmp_path / "photo.jpg").size == (32, 32)


@pytest.mark.parametrize(
    ("array", "remedy", "follow"),
    [
        (np.full((32, 32, 3), 200.0), "give uint8 for 0..255", lambda array: array.astype(np.uint8)),
        (np.zeros((2, 32, 32, 3), np.uint8), "give one image", lambda array: array[0]),
        (np.full((32, 32, 3), np.nan), r"give floats in 0\.\.1", lambda array: np.nan_to_num(array)),
        (np.zeros((32, 32, 3), np.int64), "give uint8", lambda array: array.astype(np.uint8)),
    ],
)
def test_array_that_the_remedy_asks_for_is_read(array: Any, remedy: str, follow: Callable[[Any], Any]) -> None:
    with pytest.raises(InvalidInput, match=remedy):
        to_rgb(array)
    assert to_rgb(follow(array)).size == (32, 32)


def test_another_place_takes_what_a_file_in_the_way_does_not(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where a folder has to be")
    with pytest.raises(InvalidInput, match="choose another place"):
        ImageFile(tmp_path / "results" / "a.png")
    assert ImageFile(tmp_path / "elsewhere" / "a.png").path.name == "a.png"


def test_size_that_the_remedy_proposes_is_accepted() -> None:
    with pytest.raises(InvalidInput, match=r"ask for (\d+)x(\d+)") as refusal:
        check_requested_size((1000, 777))
    width, height = map(int, re.findall(r"ask for (\d+)x(\d+)", str(refusal.value))[0])
    check_requested_size((width, height))
