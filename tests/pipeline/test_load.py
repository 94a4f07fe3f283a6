from __future__ import annotations

import builtins
import hashlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kontext_fast.errors import CheckpointUnavailable, InvalidInput, KontextError, Refused
from kontext_fast.pipeline.edit import EditRequest, edit
from kontext_fast.pipeline.folder import TINY_FOLDER, weight_files, weights_sha256
from kontext_fast.pipeline.load import load
from tests import needs
from tests.pipeline.refusals import refused_checkpoint

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of tiny that a test may damage."""
    copy = tmp_path / "my-kontext"
    shutil.copytree(TINY_FOLDER, copy)
    return copy


def image_of(pipe: Any) -> bytes:
    return edit(pipe, EditRequest("make it red", steps=1, seed=0)).images[0].tobytes()


def test_tiny_has_name_kind_precision_and_hash() -> None:
    loaded = load("tiny", device="cpu")
    facts = loaded.facts
    assert (facts.name, facts.kind, facts.dtype) == ("tiny", "tiny", "float32")
    content = (TINY_FOLDER / "transformer" / WEIGHTS).read_bytes()
    assert facts.weights_sha256 == hashlib.sha256(content).hexdigest()
    assert facts.transformer_parameters == sum(value.numel() for value in loaded.pipe.transformer.parameters())
    assert loaded.pipe.transformer.dtype == torch.float32


def test_python_use_shows_nothing_of_other_libraries() -> None:
    """In a process of its own: libraries make most of their remarks when they are imported."""
    lines = (
        "import kontext_fast, logging; pipe = kontext_fast.load('tiny', device='cpu').pipe",
        "kontext_fast.edit(pipe, None, 'a red circle', steps=1)",
        "from kontext_fast.metrics.base import Setting; from kontext_fast.metrics.clip_model import load_clip",
        "load_clip(Setting(has_judge=True))",
        "levels = [logging.getLogger(name).level for name in ('transformers', 'diffusers', 'torchao')]",
        "assert levels == [logging.WARNING, logging.WARNING, logging.NOTSET], levels",
        "import transformers; assert transformers.utils.logging.is_progress_bar_enabled()",
    )
    environment = {name: value for name, value in os.environ.items() if "VERBOSITY" not in name}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_precision_can_be_chosen() -> None:
    loaded = load("tiny", device="cpu", dtype="bfloat16")
    assert loaded.facts.dtype == "bfloat16"
    assert loaded.pipe.vae.dtype == torch.bfloat16
    with pytest.raises(InvalidInput, match="float64"):
        load("tiny", device="cpu", dtype=torch.float64)


def test_folder_is_recorded_by_its_name_alone(folder: Path, tiny: Any) -> None:
    loaded = load(str(folder), device="cpu")
    assert (loaded.facts.name, loaded.facts.kind) == ("my-kontext", "folder")
    assert str(folder.parent) not in loaded.facts.model_dump_json()
    assert image_of(loaded.pipe) == image_of(tiny)


def test_transformer_file_replaces_that_of_its_folder(folder: Path, tiny: Any) -> None:
    weights = load_file(folder / "transformer" / WEIGHTS)
    weights["proj_out.weight"] = -weights["proj_out.weight"]
    file = folder / "other.safetensors"
    save_file(weights, file)
    (folder / "transformer" / WEIGHTS).unlink()
    loaded = load(str(file), device="cpu")
    assert (loaded.facts.name, loaded.facts.kind) == ("my-kontext/other.safetensors", "folder")
    assert loaded.facts.weights_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert torch.equal(loaded.pipe.transformer.proj_out.weight, -tiny.transformer.proj_out.weight)
    assert not any(parameter.is_meta for parameter in loaded.pipe.transformer.parameters())
    assert image_of(loaded.pipe) != image_of(tiny)


def shards_of_a_transformer(place: Path, drop: str = "", **config: Any) -> Path:
    """The transformer of `tiny` in two files, by itself, without the key `drop`."""
    shutil.copytree(TINY_FOLDER / "transformer", place)
    file = place / "diffusion_pytorch_model.safetensors"
    weights = {name: value for name, value in load_file(file).items() if name != drop}
    file.unlink()
    names = sorted(weights)
    files = {f"diffusion_pytorch_model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for shard, keys in files.items():
        save_file({key: weights[key] for key in keys}, place / shard)
    index = {"metadata": {}, "weight_map": {key: shard for shard, keys in files.items() for key in keys}}
    (place / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (place / "config.json").write_text(json.dumps({**json.loads((place / "config.json").read_text()), **config}))
    return place


def test_transformer_folder_replaces_that_of_its_checkpoint(
    folder: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = shards_of_a_transformer(folder / "lightning")
    loaded = load(str(own), device="cpu")
    assert loaded.facts.name == f"{folder.name}/lightning"
    assert loaded.facts.weights_sha256 == weights_sha256(sorted(own.glob("*.safetensors")))
    assert image_of(loaded.pipe) == image_of(tiny)
    # As SenseFlow is published, for FLUX.1-dev.
    rewrite_index(folder, _class_name="FluxPipeline")
    monkeypatch.chdir(own)
    of_flux = load(".", device="cpu")
    assert of_flux.facts.name == f"{folder.name}/lightning"
    assert type(of_flux.pipe).__name__ == "FluxPipeline"
    assert image_of(of_flux.pipe) == image_of(tiny)


def test_transformer_folder_that_does_not_fit_is_refused(folder: Path) -> None:
    lacking = shards_of_a_transformer(folder / "a", drop="proj_out.bias")
    assert "1 missing weights, proj_out.bias among them" in refused_checkpoint(lacking)
    more = shards_of_a_transformer(folder / "b", num_layers=1)
    assert "unexpected weights, transformer_blocks.1." in refused_checkpoint(more)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pooled_projection_dim": 7}))
    assert "pooled_projection_dim" in refused_checkpoint(shards_of_a_transformer(folder / "c"))
    empty = folder / "d"
    empty.mkdir()
    shutil.copy(TINY_FOLDER / "transformer" / "config.json", empty)
    assert "has no weights for its d" in refused_checkpoint(empty)


def test_transformer_file_needs_the_rest(folder: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.safetensors"
    shutil.copy(folder / "transformer" / WEIGHTS, alone)
    assert "transformer alone" in refused_checkpoint(alone)
    pickled = folder / "model.ckpt"
    pickled.write_bytes(b"")
    assert "not a .safetensors or .gguf file" in refused_checkpoint(pickled)


def test_transformer_file_that_does_not_fit_is_refused(folder: Path) -> None:
    weights = load_file(folder / "transformer" / WEIGHTS)
    file = folder / "wrong.safetensors"
    del weights["proj_out.weight"]
    save_file(weights, file)
    assert "lacks 1 of" in (sentence := refused_checkpoint(file))
    assert "proj_out.weight" in sentence
    file.write_bytes(b"not safetensors")
    assert "could not be read" in refused_checkpoint(file)


def test_folder_of_another_pipeline_is_refused(folder: Path, tmp_path: Path) -> None:
    assert "no model_index.json" in refused_checkpoint(tmp_path)
    index = folder / "model_index.json"
    description = json.loads(index.read_text())
    index.write_text(json.dumps({**description, "_class_name": "FluxFillPipeline"}))
    assert "is a FluxFillPipeline" in refused_checkpoint(folder)
    index.write_text("{")
    assert "damaged" in refused_checkpoint(folder)


def rewrite_index(folder: Path, **values: Any) -> None:
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **values}))


def test_folder_of_the_inpaint_pipeline_edits(folder: Path, tiny: Any) -> None:
    rewrite_index(folder, _class_name="FluxKontextInpaintPipeline")
    loaded = load(str(folder), device="cpu")
    assert type(loaded.pipe).__name__ == "FluxKontextPipeline"
    assert image_of(loaded.pipe) == image_of(tiny)


def test_folder_of_flux_makes_images_and_edits_none(folder: Path, tiny: Any, picture: Any) -> None:
    rewrite_index(folder, _class_name="FluxPipeline")
    loaded = load(str(folder), device="cpu")
    assert type(loaded.pipe).__name__ == "FluxPipeline"
    assert image_of(loaded.pipe) == image_of(tiny)
    with pytest.raises(InvalidInput, match="kontext generate"):
        edit(loaded.pipe, EditRequest("make it red", picture, steps=1))


@pytest.mark.parametrize(
    "parts", [("transformer",), ("vae", "text_encoder"), ("transformer", "text_encoder_2")], ids=str
)
@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_variants_of_weights_are_found(folder: Path, tiny: Any, parts: tuple[str, ...], variant: str) -> None:
    for part in parts:
        file = next((folder / part).glob("*.safetensors"))
        file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))
    assert image_of(load(str(folder), device="cpu").pipe) == image_of(tiny)


def test_weights_without_a_variant_are_preferred(folder: Path) -> None:
    for part in ("transformer", "vae"):
        (file,) = weight_files(folder / part)
        file.with_name(f"{file.stem}.fp16.safetensors").write_bytes(b"never read")
        file.with_name(f"{file.stem}.fp16-00001-of-00002.safetensors").write_bytes(b"never read")
        assert weight_files(folder / part) == [file]
    load(str(folder), device="cpu")


def test_parts_in_different_variants_are_refused(folder: Path) -> None:
    for part, variant in (("transformer", "fp16"), ("vae", "bf16")):
        (file,) = weight_files(folder / part)
        file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))
    assert "its transformer only as fp16 and its vae only as bf16" in refused_checkpoint(folder)


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_missing_tokenizer_is_refused(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    assert f"in its folder {part}" in refused_checkpoint(folder)
    (folder / part).mkdir()
    assert f"in its folder {part}" in refused_checkpoint(folder)


def test_tokenizer_of_another_encoder_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer_2")
    shutil.copytree(folder / "tokenizer", folder / "tokenizer_2")
    refused_checkpoint(folder)


ERRORS = sorted(
    (kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    key=lambda kind: kind.__name__,
)
OWN_WORDS = {"ExceptionGroup": lambda kind: kind("reason", [ValueError()])}
FIVE = {"UnicodeDecodeError": ("utf-8", b"", 0, 1, "reason"), "UnicodeEncodeError": ("utf-8", "", 0, 1, "reason")}


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_whatever_a_library_raises_is_one_sentence(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every exception that Python has stands for those of the libraries, which derive from them."""
    from diffusers import FluxKontextPipeline

    def fail(*_: Any, **__: Any) -> None:
        raise OWN_WORDS.get(kind.__name__, lambda kind: kind(*FIVE.get(kind.__name__, ("reason",))))(kind)

    monkeypatch.setattr(FluxKontextPipeline, "from_pretrained", fail)
    with pytest.raises(KontextError) as caught:
        load("tiny", device="cpu")
    assert caught.value.exit_code in (2, 3)
    assert (caught.value.exit_code == 3) == issubclass(kind, MemoryError)


def damages(content: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "cut off": content[: len(content) // 2],
        "zeros": bytes(len(content)),
        "a list": b"[]",
        "a number": b"7",
        "not UTF-8": b"\xff\xfe" + content,
    }


FILES = sorted(str(file.relative_to(TINY_FOLDER)) for file in TINY_FOLDER.rglob("*.json"))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.slow
def test_damaged_files_are_refused_or_unread(folder: Path, tiny: Any, file: str) -> None:
    content = (folder / file).read_bytes()
    for changed in damages(content).values():
        (folder / file).write_bytes(changed)
        # Refused as every checkpoint is, or what was damaged is not read.
        with suppress(CheckpointUnavailable):
            assert image_of(load(str(folder), device="cpu").pipe) == image_of(tiny)


def test_pickled_weights_are_never_opened(folder: Path) -> None:
    file = folder / "vae" / WEIGHTS
    file.rename(file.with_suffix(".bin"))
    assert "its vae only as a .bin file" in refused_checkpoint(folder)


def test_missing_and_damaged_weights_are_refused(folder: Path) -> None:
    file = folder / "transformer" / WEIGHTS
    file.write_bytes(file.read_bytes()[:1000])
    assert "could not be loaded" in refused_checkpoint(folder)
    file.unlink()
    assert "no weights for its transformer" in refused_checkpoint(folder)


NONSENSE = (
    {"base_image_seq_len": 4096},
    {"base_shift": "half", "max_shift": 1.0},
    {"max_shift": 1e9},
    {"use_dynamic_shifting": False, "shift": 0.0},
    {"use_dynamic_shifting": False, "shift": -1.0},
    {"num_train_timesteps": 0},
    {"num_train_timesteps": "many"},
    {"time_shift_type": "sideways"},
    {"use_karras_sigmas": True, "use_exponential_sigmas": True},
    {"invert_sigmas": True},
    {"shift_terminal": 1.0},
    {"_class_name": "DDPMScheduler"},
    {"_class_name": "NoSuchScheduler"},
)


@pytest.mark.parametrize("values", NONSENSE, ids=str)
def test_nonsensical_scheduler_is_refused_by_name(folder: Path, values: dict[str, Any]) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    if "_class_name" in values:
        index = folder / "model_index.json"
        index.write_text(
            json.dumps({**json.loads(index.read_text()), "scheduler": ["diffusers", values["_class_name"]]})
        )
    with pytest.raises(CheckpointUnavailable, match=f"{folder}"):
        load(str(folder), device="cpu")


def test_static_shift_of_the_scheduler_is_accepted(folder: Path) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_dynamic_shifting": False, "shift": 3.0}))
    assert image_of(load(str(folder), device="cpu").pipe)


@pytest.mark.parametrize("word", ["", "huge", "./nowhere", "/no/such/folder", "a/b/c"])
def test_unknown_checkpoint_lists_the_choices(word: str) -> None:
    sentence = refused_checkpoint(word)
    for choice in ("tiny", "random", "diffusers folder", "Hub id"):
        assert choice in sentence


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "meta", ""])
def test_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(InvalidInput, match="use cpu, cuda or cuda:N"):
        load("tiny", device=device)


@needs.no_gpu
def test_missing_gpu_is_refused() -> None:
    with pytest.raises(Refused, match="no GPU"):
        load("tiny", device="cuda")


def test_loading_is_silent_and_restores_progress_bars(capfd: pytest.CaptureFixture[str]) -> None:
    import diffusers.utils.logging
    import transformers.utils.logging

    load("tiny", device="cpu")
    assert capfd.readouterr() == ("", "")
    assert diffusers.utils.logging.is_progress_bar_enabled()
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_hash_covers_all_shards_in_order(tmp_path: Path) -> None:
    for name, content in (("b.safetensors", b"2"), ("a.safetensors", b"1"), ("c.bin", b"3")):
        (tmp_path / name).write_bytes(content)
    files = weight_files(tmp_path)
    assert [file.name for file in files] == ["a.safetensors", "b.safetensors"]
    both = weights_sha256(files)
    (tmp_path / "b.safetensors").write_bytes(b"4")
    assert weights_sha256(files) != both
    assert weights_sha256(files[:1]) == hashlib.sha256(b"1").hexdigest()


def test_name_of_a_cached_blob_is_its_hash(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"large")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert weights_sha256([link]) == "ab" * 32
