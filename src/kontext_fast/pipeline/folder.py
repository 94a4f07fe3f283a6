"""A FLUX.1-Kontext pipeline from a diffusers folder: the user's, or `tiny`, which comes with the package."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kontext_fast.errors import CheckpointUnavailable, KontextError, Refused
from kontext_fast.pipeline.device import choose_dtype, is_out_of_host_memory, memory_errors
from kontext_fast.pipeline.load import (
    FULL_SIZE_BYTES,
    NOISY_LOGGERS,
    CheckpointSource,
    LoadedCheckpoint,
    Target,
    loaded_checkpoint,
)

if TYPE_CHECKING:
    import torch


TINY_FOLDER = Path(__file__).parent / "checkpoints" / "tiny"

PIPELINES = {
    "FluxKontextPipeline": "FluxKontextPipeline",
    "FluxKontextInpaintPipeline": "FluxKontextPipeline",
    "FluxPipeline": "FluxPipeline",
}
"""The class that a folder names, and the one that runs it: the second has the same parts as the first."""

INDEX = "model_index.json"

MODELS = ("transformer", "vae", "text_encoder", "text_encoder_2")
"""The components that have weights."""

TOKENIZERS = {"tokenizer": ("tokenizer.json", "vocab.json"), "tokenizer_2": ("tokenizer.json", "spiece.model")}
"""Files of which each needs one: without any, transformers builds a tokenizer that knows no word."""


_QUANTIZERS = {"bitsandbytes": "bitsandbytes", "quanto": "optimum-quanto", "torchao": "torchao"}
"""Packages of the methods that diffusers saves weights with."""


def _config_of(folder: Path) -> dict[str, Any]:
    """The `config.json` of a model; nothing where there is none that can be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def class_of(folder: Path) -> str:
    """What the `config.json` of a model says that it is; nothing where there is none."""
    return str(_config_of(folder).get("_class_name", ""))


def check_folder(folder: Path, name: str, *, weights: bool = True, own_transformer: bool = True) -> None:
    """Raise CheckpointUnavailable unless `folder` is a diffusers folder of FLUX.1-Kontext in safetensors.

    Messages call it `name`. Without `weights` only its index is checked; without `own_transformer` the
    weights of the transformer may be missing.
    """
    index = folder / INDEX
    if not index.is_file() and (model := class_of(folder)):
        raise CheckpointUnavailable(
            f"{name} is a {model} alone, no transformer of FLUX.1; give one, or the folder of a whole pipeline."
        )
    if not index.is_file():
        raise CheckpointUnavailable(
            f"{name} is not a diffusers folder, since it has no {INDEX}; give the folder that holds it, or use tiny."
        )
    try:
        pipeline = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, TypeError, KeyError):
        raise CheckpointUnavailable(f"The {INDEX} of {name} is damaged; download it again.") from None
    if pipeline not in PIPELINES:
        raise CheckpointUnavailable(
            f"{name} is a {pipeline}, not a FluxKontextPipeline; use a FLUX.1-Kontext checkpoint or tiny."
        )
    if weights:
        for component in MODELS:
            if own_transformer or component != "transformer":
                check_component(folder / component, name)
        for tokenizer, files in TOKENIZERS.items():
            if not any((folder / tokenizer / file).is_file() for file in files):
                raise CheckpointUnavailable(
                    f"{name} has no {' or '.join(files)} in its folder {tokenizer}, without which instructions are "
                    "not read; copy that folder from the checkpoint again, or use tiny."
                )


def check_component(folder: Path, name: str) -> None:
    """Raise CheckpointUnavailable, which calls the checkpoint `name`, unless its model in `folder` has weights.

    Raises Refused where they are quantized by a package that is not installed.
    """
    if weight_files(folder):
        method = str((_config_of(folder).get("quantization_config") or {}).get("quant_method", ""))
        package = _QUANTIZERS.get(method)
        if package is not None and find_spec(package.partition("-")[0]) is None:
            raise Refused(
                f"The {folder.name} of {name} is quantized by {package}, which is not installed; run `pip install "
                f"{package}`, or give the checkpoint without quantization, which presets with the engine need anyway."
            )
        return
    if any(folder.glob("*.bin")):
        raise CheckpointUnavailable(
            f"{name} has its {folder.name} only as a .bin file, which can run code when it is opened; "
            "convert it to safetensors."
        )
    raise CheckpointUnavailable(f"{name} has no weights for its {folder.name}; download it again, or use tiny.")


def weights_bytes(folder: Path, *, transformer: bool = True) -> int:
    """Size on disk of all weights in `folder`, or of all but the transformer's."""
    models = MODELS if transformer else MODELS[1:]
    variant = weights_variant(folder)
    return sum(file.stat().st_size for model in models for file in weight_files(folder / model, variant))


@dataclass(frozen=True)
class TransformerFile:
    """A transformer that comes from a file or a folder of its own, and not from the folder of the rest."""

    path: Path
    load: Callable[[Path, Path, torch.dtype], tuple[Any, tuple[str, ...]]]
    """From the path, the folder and a precision to a transformer on the CPU, and what of the file is not used."""
    files: tuple[Path, ...]
    """Those that have its weights."""


def load_folder(
    folder: Path, target: Target, *, kind: str, name: str, shown: str, transformer: TransformerFile | None = None
) -> LoadedCheckpoint:
    """Load a checked `folder`, with its own transformer or with another one.

    Records call it `name`, and messages `shown`, which may be a path. Raises CheckpointUnavailable or OutOfMemory.
    """
    dtype = choose_dtype(target.dtype, target.device, weights_bytes(folder))
    variant = weights_variant(folder, own_transformer=transformer is None)
    class_name = PIPELINES[json.loads((folder / INDEX).read_text(encoding="utf-8"))["_class_name"]]
    parts: dict[str, Any] = {}
    unused: tuple[str, ...] = ()
    with memory_errors(f"loading {shown}"):
        with _loading_errors(shown), quiet_libraries():
            import diffusers

            pipeline = getattr(diffusers, class_name)
            if transformer is not None:
                parts["transformer"], unused = transformer.load(transformer.path, folder, dtype)
            pipe = pipeline.from_pretrained(
                folder, **parts, dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True
            )
            _check_tokenizers(pipe, shown)
        check_scheduler(pipe.scheduler, shown)
        if not target.in_host_memory:
            pipe.to(target.device)
    files = weight_files(folder / "transformer", variant) if transformer is None else list(transformer.files)
    loaded = loaded_checkpoint(pipe, name=name, kind=kind, weights_sha256=weights_sha256(files), dtype=dtype)
    return replace(loaded, unused=unused)


def _check_tokenizers(pipe: Any, name: str) -> None:
    """Raise CheckpointUnavailable unless both tokenizers know words, and none that their encoder does not."""
    for part, encoder in (("tokenizer", pipe.text_encoder), ("tokenizer_2", pipe.text_encoder_2)):
        tokenizer = getattr(pipe, part)
        ids = tokenizer("make the red car blue", add_special_tokens=False).input_ids
        if len(set(ids) - {tokenizer.unk_token_id}) < 2 or max(ids) >= encoder.get_input_embeddings().num_embeddings:
            raise CheckpointUnavailable(
                f"The {part} of {name} is not that of its encoder; copy its folder from the checkpoint again, "
                "or use tiny."
            )


_TOKENS_TRIED = (64, 4096, 16384)
_STEPS_TRIED = (1, 2, 28)


def check_scheduler(scheduler: Any, name: str) -> None:
    """Raise CheckpointUnavailable unless the scheduler of checkpoint `name` gives noise levels that fall from at most 1
    to 0, for few and many steps and tokens, as the pipeline asks for them.
    """
    import numpy as np
    from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift, retrieve_timesteps

    shift_of = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    try:
        # Its steps are set again for every edit, but not on the pipeline's own one here.
        copy = type(scheduler).from_config(scheduler.config)
        known = {name.replace("image_seq", "seq"): copy.config[name] for name in shift_of if name in copy.config}
        for tokens, steps in product(_TOKENS_TRIED, _STEPS_TRIED):
            sigmas = np.linspace(1.0, 1 / steps, steps)
            with np.errstate(all="ignore"):
                retrieve_timesteps(copy, steps, "cpu", sigmas=sigmas, mu=calculate_shift(tokens, **known))
            levels = np.asarray(copy.sigmas, np.float64)
            falls = len(levels) == steps + 1 and levels[0] <= 1 and levels[-1] == 0 and (np.diff(levels) < 0).all()
            if not falls:
                raise ValueError(f"its noise levels do not fall from 1 to 0 in {steps} steps")
    # A library may raise anything for values that mean nothing.
    except Exception as error:
        raise CheckpointUnavailable(
            f"The scheduler of {name} cannot be used ({_reason(error)}); download its configuration again, or use tiny."
        ) from error


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def _load_tiny(_: str, target: Target) -> LoadedCheckpoint:
    check_folder(TINY_FOLDER, "tiny")
    return load_folder(TINY_FOLDER, target, kind="tiny", name="tiny", shown="tiny")


TINY = CheckpointSource(
    name="tiny",
    kind="tiny",
    precedence=0,
    matches=lambda word: word == "tiny",
    full_size=lambda _: False,
    load=_load_tiny,
)


def _is_folder(checkpoint: str) -> bool:
    # The empty word would be the current folder.
    return bool(checkpoint) and Path(checkpoint).expanduser().is_dir()


def _load_folder(checkpoint: str, target: Target) -> LoadedCheckpoint:
    folder = Path(checkpoint).expanduser()
    check_folder(folder, checkpoint)
    return load_folder(folder, target, kind="folder", name=folder.resolve().name, shown=checkpoint)


FOLDER = CheckpointSource(
    name="a diffusers folder",
    kind="folder",
    precedence=15,
    matches=_is_folder,
    full_size=lambda checkpoint: weights_bytes(Path(checkpoint).expanduser()) >= FULL_SIZE_BYTES,
    load=_load_folder,
)


@contextmanager
def _loading_errors(name: str) -> Iterator[None]:
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, KontextError):
        raise
    # For missing, damaged and mismatched files libraries raise anything: tokenizers, for one, a bare Exception.
    except Exception as error:
        if is_out_of_host_memory(error):
            raise
        raise CheckpointUnavailable(
            f"{name} could not be loaded ({_reason(error)}); check that it is a whole copy of a FLUX.1-Kontext "
            "checkpoint, or use tiny."
        ) from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside, other libraries show no progress bars, and no remarks on packages that they could use, too."""
    with ExitStack() as undo:
        for name in NOISY_LOGGERS:
            _only_errors(name, undo)
        import diffusers.utils.logging
        import transformers.utils.logging

        for library in (diffusers.utils.logging, transformers.utils.logging):
            # The first use of a library's logging sets the level of its logger.
            library.get_verbosity()
            _only_errors(library.__name__.partition(".")[0], undo)
            if library.is_progress_bar_enabled():
                library.disable_progress_bar()
                undo.callback(library.enable_progress_bar)
        yield


def _only_errors(logger_name: str, undo: ExitStack) -> None:
    logger = logging.getLogger(logger_name)
    undo.callback(logger.setLevel, logger.level)
    logger.setLevel(max(logger.level, logging.ERROR))


_SHA256 = re.compile(r"[0-9a-f]{64}")


_SHARD = re.compile(r"-\d{5}-of-\d{5}")


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors files directly in `folder` that are loaded, sorted by name: those of `variant` where there are
    any, else those of none, else of whichever there is."""
    by_variant: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        by_variant.setdefault(_SHARD.sub("", file.stem).partition(".")[2], []).append(file)
    return next((by_variant[name] for name in (variant, "", *by_variant) if name in by_variant), [])


def weights_variant(folder: Path, *, own_transformer: bool = True) -> str | None:
    """The variant, "fp16" for one, to load `folder` in: that of a part that comes in no other way.

    Raises CheckpointUnavailable where two parts come only in different ones.
    """
    variants: dict[str, str] = {}
    for model in MODELS if own_transformer else MODELS[1:]:
        files = weight_files(folder / model)
        if variant := variant_of(files):
            variants.setdefault(variant, model)
    if len(variants) > 1:
        only = " and ".join(f"its {model} only as {variant}" for variant, model in variants.items())
        raise CheckpointUnavailable(f"{folder.name} has {only}; give all parts in one of them.")
    return next(iter(variants), None)


def variant_of(files: list[Path]) -> str | None:
    """The variant that weights in `files` are in, by their names."""
    return _SHARD.sub("", files[0].stem).partition(".")[2] or None if files else None


def weights_sha256(files: list[Path]) -> str:
    """One hash of `files`: the hash of a single file, else the hash of all their hashes in order."""
    hashes = [_file_sha256(file) for file in files]
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _file_sha256(file: Path) -> str:
    # The cache of the Hub names large files by their sha256, which saves reading 24 GB again.
    blob = file.resolve()
    if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
        return blob.name
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
