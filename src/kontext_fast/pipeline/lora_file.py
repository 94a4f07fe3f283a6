"""LoRA files of whichever trainer: what every key of them means.

A key is a prefix, the name of a layer and a part of an update. Prefixes and parts are listed here; the names are those
of the pipeline's own modules and of the original release, with dots or with underscores. So kohya's and OneTrainer's
`lora_unet_…`, `lora_transformer_…` and `lora_te1_…`, ComfyUI's `diffusion_model.…`, fal's `base_model.model.…`, XLabs'
`processor.…`, PEFT's, diffusers', ai-toolkit's and LyCORIS' files are read by one rule, and no key is passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.layer_names import Piece, Pieces, original_layers
from kontext_fast.pipeline.weights_file import WeightsFile, kind_of_file, open_weights

if TYPE_CHECKING:
    import torch

_ADAPTER = r"(?:\.[A-Za-z_]\w*)?"  # PEFT puts the name of the adapter between.
_PARTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (part, re.compile(rf"^(?P<layer>.+?)[._](?:{pattern})$"))
    for part, pattern in (
        ("down", rf"lora_A{_ADAPTER}\.weight|lora_down\.weight|lora(?:_linear_layer)?\.down\.weight|down\.weight"),
        ("up", rf"lora_B{_ADAPTER}\.weight|lora_up\.weight|lora(?:_linear_layer)?\.up\.weight|up\.weight"),
        ("up_bias", rf"lora_B{_ADAPTER}\.bias|lora_up\.bias"),
        ("magnitude", rf"lora_magnitude_vector{_ADAPTER}(?:\.weight)?|dora_scale"),
        ("alpha", r"(?:lora(?:_linear_layer)?\.)?alpha"),
        *(
            (name, rf"{name}{_ADAPTER}")
            for name in (
                *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
                *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
            )
        ),
        ("diff", "diff"),
        ("diff_b", "diff_b"),
    )
)

_SETS = (frozenset({"down", "up"}), frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}))
_LOKR = tuple(
    frozenset({*first, *second})
    for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
    for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
)
_BESIDE = frozenset({"alpha", "magnitude", "up_bias", "diff_b"})
"""Parts that come beside a whole set."""

_TRANSFORMER = ("", "transformer_", "diffusion_model_", "model_diffusion_model_", "unet_", "lora_unet_", "lycoris_")
_TRANSFORMER_IN_PEFT = ("base_model_model_", "base_model_model_transformer_", "lora_transformer_")
_CLIP = (
    "text_encoder_",
    "lora_te_",
    "lora_te1_",
    "text_encoders_clip_l_transformer_",
    "text_encoders_clip_l_",
    "clip_l_",
)
_T5 = (
    "text_encoder_2_",
    "lora_te2_",
    "lora_te3_",
    "text_encoders_t5xxl_transformer_",
    "text_encoders_t5xxl_",
    "t5xxl_",
)
_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "transformer": (*_TRANSFORMER, *_TRANSFORMER_IN_PEFT),
    "text_encoder": (*_CLIP, *(f"{prefix}text_model_" for prefix in _CLIP)),
    "text_encoder_2": _T5,
}
_TRAINED_WORDS = ("bundle_emb.", "emb_params", "clip_l.emb", "t5.emb")

_OTHER_MODELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("FLUX.2", ("double_stream_modulation", "single_stream_modulation", "to_qkv_mlp_proj", "ff.linear_in")),
    ("pi-Flow", ("proj_out_means", "proj_out_logweights", "proj_out_logstds")),
    ("Chroma", ("distilled_guidance_layer",)),
    ("Qwen-Image", ("transformer_blocks.0.img_mlp", "transformer_blocks_0_img_mlp", "img_mod.1", "txt_norm")),
    ("Stable Diffusion 3", ("joint_blocks",)),
    ("Stable Diffusion", ("down_blocks", "input_blocks", "mid_block", "up_blocks")),
    ("HunyuanVideo", ("img_attn_qkv.", "img_attn.qkv_proj")),
    ("Wan", ("blocks.0.cross_attn", "blocks_0_cross_attn")),
)


@dataclass(frozen=True)
class Target:
    """A stored layer: what it is called in the pipeline, and of what it consists there."""

    component: str
    pieces: Pieces


@dataclass
class LayerUpdate:
    """All parts of the update of one stored layer."""

    name: str
    """As the file calls it."""
    target: Target
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    scale: float = 1.0
    """alpha / rank where there is an alpha, else 1, as in files whose trainer already applied it."""


def read_lora(pipe: Any, path: Path) -> tuple[list[LayerUpdate], tuple[str, ...]]:
    """The updates in `path`, and what of it is not used, one sentence each.

    Raises InvalidInput, with what the file is or the key that stands for nothing in `pipe`.
    """
    file = _open(path)
    targets = _targets(pipe)
    updates: dict[str, LayerUpdate] = {}
    unknown: list[str] = []
    words: list[str] = []
    absent: dict[str, list[str]] = {}
    for key in file.tensors:
        if key.startswith(_TRAINED_WORDS):
            words.append(key)
            continue
        part, layer = _split(key)
        flat = layer.replace(".", "_")
        if part and (target := targets.get(flat)) is not None:
            update = updates.setdefault(flat, LayerUpdate(layer, target))
            if part in update.parts:
                raise InvalidInput(
                    f"{path.name} has two updates of {layer}, by {key} and another key; give one of them."
                )
            update.parts[part] = file.values(key)
        elif part and (component := _absent(pipe, flat)):
            absent.setdefault(component, []).append(key)
        else:
            unknown.append(key)
    if unknown or not (updates or absent):
        raise InvalidInput(_what_it_is(file, unknown))
    settings = _settings(file)
    for update in updates.values():
        _check(update, path)
        update.scale = _scale(update, settings)
    unused = [f"{len(keys)} tensors of the {name} are not used: the pipeline has none" for name, keys in absent.items()]
    if words:
        unused.append(f"{len(words)} tensors of trained words are not used: load them with pipe.load_textual_inversion")
    return list(updates.values()), tuple(unused)


def _open(path: Path) -> WeightsFile:
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise InvalidInput(f"The folder {path} has {len(files)} .safetensors files; name the LoRA itself.")
        path = files[0]
    if not path.is_file():
        raise InvalidInput(f"There is no LoRA {path}; check the path.")
    if path.suffix != ".safetensors":
        raise InvalidInput(f"{path} is not a .safetensors file, and other formats can run code; convert it.")
    return open_weights(path)


def _split(key: str) -> tuple[str | None, str]:
    """The part of an update that `key` is, or None, and the layer it belongs to."""
    for part, pattern in _PARTS:
        if match := pattern.match(key):
            return part, match["layer"]
    return None, key


def _targets(pipe: Any) -> dict[str, Target]:
    """Every layer that an update may name, by its name with all prefixes, underscores for dots."""
    targets = {}
    for component, prefixes in _PREFIXES.items():
        model = getattr(pipe, component, None)
        if model is None:
            continue
        layers: dict[str, Pieces] = {
            name: (Piece(name),)
            for name, module in model.named_modules()
            if getattr(module, "weight", None) is not None
        }
        if component == "transformer":
            config = model.config
            layers |= original_layers(config.num_layers, config.num_single_layers)
        for name, pieces in layers.items():
            for prefix in prefixes:
                targets[prefix + name.replace(".", "_")] = Target(component, pieces)
    return targets


def _absent(pipe: Any, flat: str) -> str | None:
    """The component that `flat` belongs to by its prefix, where `pipe` has none of it."""
    for component in ("text_encoder_2", "text_encoder"):
        if getattr(pipe, component, None) is None and flat.startswith(_PREFIXES[component]):
            return component
    return None


def _check(update: LayerUpdate, path: Path) -> None:
    """Raise InvalidInput unless the parts are a whole update."""
    parts = update.parts.keys()
    core = parts - _BESIDE
    whole = core in (*_SETS, *_LOKR, {"diff"}) or (not core and "diff_b" in parts)
    if not whole:
        have = ", ".join(sorted(parts))
        raise InvalidInput(
            f"{path.name} is a LoRA for another model or not whole, since it has {have} alone of {update.name}; "
            "give another one."
        )


def _settings(file: WeightsFile) -> dict[str, Any]:
    """How PEFT made the file: from the file itself, or from the `adapter_config.json` beside it."""
    try:
        if (stored := file.metadata.get("lora_adapter_metadata")) is not None:
            settings = json.loads(stored)
        elif (
            file.path.name == "adapter_model.safetensors"
            and (beside := file.path.with_name("adapter_config.json")).is_file()
        ):
            settings = json.loads(beside.read_text(encoding="utf-8"))
        else:
            settings = {}
    except (OSError, ValueError) as error:
        raise InvalidInput(f"The settings of {file.path} cannot be read; copy the LoRA again.") from error
    return settings if isinstance(settings, dict) else {}


def _scale(update: LayerUpdate, settings: Mapping[str, Any]) -> float:
    parts = update.parts
    ranked = [parts[name] for name in ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b") if name in parts]
    if not ranked:
        return 1.0
    rank = int(ranked[-1].shape[0])
    alpha: Any = parts["alpha"].item() if "alpha" in parts else None
    of_component = {
        key.removeprefix(f"{update.target.component}."): value for key, value in settings.items() if value is not None
    }
    if alpha is None:
        layer = update.target.pieces[0].layer
        patterns = of_component.get("alpha_pattern") or {}
        # PEFT matches whole names or their ends.
        matches = (value for key, value in patterns.items() if layer == key or layer.endswith(f".{key}"))
        alpha = next(matches, of_component.get("lora_alpha", of_component.get("alpha")))
    if alpha is None:
        return 1.0
    return float(alpha) / (rank**0.5 if of_component.get("use_rslora") else rank)


def _what_it_is(file: WeightsFile, unknown: Iterable[str]) -> str:
    unknown = list(unknown)
    name = file.path
    if not any(_split(key)[0] for key in file.tensors):
        kind = kind_of_file(file.tensors)
        known = f"is {kind}" if kind and kind != "a LoRA" else "has no LoRA layers"
        return f"{name} {known}, so it is not a plain LoRA for FLUX.1-Kontext; give another one."
    for model, marks in _OTHER_MODELS:
        if any(mark in key for key in unknown for mark in marks):
            return f"{name} is a LoRA for another model, {model}, since it holds {unknown[0]}; give another one."
    if _split(unknown[0])[0] is None:
        return f"{name} is not a plain LoRA for FLUX.1-Kontext, since it holds {unknown[0]}; give another one."
    return f"{name} is a LoRA for another model, since this one has no layer for {unknown[0]}; give another one."
