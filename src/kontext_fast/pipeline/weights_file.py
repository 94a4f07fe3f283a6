"""Files of weights before a library has dropped or cast anything: their keys and precisions, what they are, and their
values, multiplied by the scales that are stored beside them.

How ComfyUI stores scaled float8: https://github.com/comfyanonymous/ComfyUI, `convert_old_quants` in `comfy/utils.py`
and `scaled_fp8_ops` in `comfy/ops.py` (`scale_weight`, one number), and `QUANTIZATION.md` (`weight_scale`): a weight
is what is stored **times** its scale. Black Forest Labs' own files have one `weight_scale` per row, and
`dequantize_fp8r` of diffusers (`quantizers/bfl/utils.py`) multiplies, too. GGUF: `quantizers/gguf/utils.py` there.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kontext_fast.errors import InvalidInput, Refused

if TYPE_CHECKING:
    import torch

_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
"""Precisions, as safetensors calls them, whose numbers mean what they are, up to a scale."""

_PLAIN = frozenset({"F64", "F32", "F16"})
"""Those that numpy has, too."""

_SCALES = ("scale_weight", "weight_scale")
_OF_ACTIVATIONS = ("scale_input", "input_scale")
_UNKNOWN_SCALES = ("weight_scale_2", "pre_quant_scale", "absmax", "wscales", "smooth", "smooth_factor", "scales")
_MARKERS = ("scaled_fp8", "comfy_quant")
_FORMATS = frozenset({"float8_e4m3fn", "float8_e5m2"})
_GGUF = b"GGUF"


@dataclass(frozen=True)
class Stored:
    """One tensor of a file."""

    precision: str
    """As its format calls it: BF16, F8_E4M3, Q4_K."""
    shape: tuple[int, ...]


@dataclass
class WeightsFile:
    """A safetensors or GGUF file, of which only the list of tensors was read."""

    path: Path
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str] = field(default_factory=dict)
    is_gguf: bool = False

    def values(self, key: str) -> torch.Tensor:
        """The tensor `key` in the precision it is stored in; of GGUF, in the precision that its blocks decode to."""
        if not self.is_gguf:
            tensor: torch.Tensor = self._opened.get_tensor(key)
            return tensor
        import torch
        from diffusers.quantizers.gguf.utils import GGML_QUANT_SIZES, dequantize_functions

        stored = next(tensor for tensor in self._opened.tensors if tensor.name == key)
        data = torch.from_numpy(stored.data.copy())
        if stored.tensor_type.name not in _PLAIN:
            block, size = GGML_QUANT_SIZES[stored.tensor_type]
            decode = dequantize_functions[stored.tensor_type]
            # By default it multiplies in float16, which rounds and overflows.
            data = decode(data.view(torch.uint8).reshape(-1, size), block, size, dtype=torch.float32)
        return data.reshape(self.tensors[key].shape)

    @cached_property
    def _opened(self) -> Any:
        if self.is_gguf:
            return _gguf_reader(self.path)
        from safetensors import safe_open

        return safe_open(self.path, framework="pt")


def open_weights(path: Path) -> WeightsFile:
    """Read the list of tensors of `path`. Raises InvalidInput for a damaged file, and Refused without what reads it."""
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
            if start[:4] == _GGUF:
                return _open_gguf(path)
            (length,) = struct.unpack("<Q", start)
            size = path.stat().st_size
            if length > size - 8:
                raise ValueError("it ends inside of its list of tensors")
            header = json.loads(stream.read(length))
        metadata = header.pop("__metadata__", None) or {}
        tensors = {key: Stored(str(value["dtype"]), tuple(value["shape"])) for key, value in header.items()}
        end = max((value["data_offsets"][1] for value in header.values()), default=0)
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, struct.error) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged or of another format"
        raise InvalidInput(f"{path} could not be read ({reason}); give an intact .safetensors file.") from error
    if end > size - 8 - length:
        raise InvalidInput(
            f"{path} is cut off: {end + 8 + length} bytes are announced, {size} are there; copy it again."
        )
    return WeightsFile(path, tensors, metadata)


def _open_gguf(path: Path) -> WeightsFile:
    reader = _gguf_reader(path)
    tensors = {
        # GGUF counts dimensions from the last one.
        tensor.name: Stored(tensor.tensor_type.name, tuple(int(size) for size in reversed(tensor.shape)))
        for tensor in reader.tensors
    }
    return WeightsFile(path, tensors, is_gguf=True)


def _gguf_reader(path: Path) -> Any:
    if find_spec("gguf") is None:
        raise Refused(f"{path.name} is a GGUF file, which the package gguf reads; pip install 'kontext-fast[gguf]'.")
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    # It fails with whatever its reading of numbers leads to.
    except Exception as error:
        raise InvalidInput(f"{path} could not be read (it is damaged or cut off); copy it again.") from error


@dataclass(frozen=True)
class Dequantized:
    """What the keys of a file are, after its scales were told from its weights."""

    file: WeightsFile
    weights: Mapping[str, str]
    """Keys of weights by their names without the prefix of the file."""
    scales: Mapping[str, str]
    """Keys of scales, by the names of the weights that they belong to."""
    unused: tuple[str, ...]
    """What is left out without changing an image, one sentence each."""

    def values(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """The weight `name` in `dtype`, multiplied by its scale in float32 where it has one."""
        import torch

        values = self.file.values(self.weights[name])
        if name not in self.scales:
            return values.to(dtype)
        scale = self.file.values(self.scales[name]).to(torch.float32)
        rows = [-1] + [1] * (values.dim() - 1)
        return (values.to(torch.float32) * (scale if scale.numel() == 1 else scale.reshape(rows))).to(dtype)

    def row_scales(self, name: str) -> torch.Tensor | None:
        """[rows] float32: what the float8 numbers of the weight `name` are multiplied by; None where it has none."""
        import torch

        stored = self.file.tensors[self.weights[name]]
        if stored.precision != "F8_E4M3" or not stored.shape:
            return None
        scale = torch.ones(1) if name not in self.scales else self.file.values(self.scales[name]).to(torch.float32)
        return scale.reshape(-1).expand(stored.shape[0])


def account_for_scales(file: WeightsFile, prefix: str) -> Dequantized:
    """Tell scales and markers from weights among the keys that begin with `prefix`; all others are other models.

    Raises InvalidInput, with the precision or the key, for a file whose numbers cannot be decoded.
    """
    own = {key.removeprefix(prefix): key for key in file.tensors if key.startswith(prefix)}
    scales, weights, activations = {}, {}, 0
    for name, key in own.items():
        layer, _, last = name.rpartition(".")
        if last in _UNKNOWN_SCALES:
            raise InvalidInput(_not_decodable(file, f"its {key} is part of a quantization"))
        if last == "comfy_quant":
            _require_format(file, key, _json(bytes(file.values(key).tolist())))
        elif last in _SCALES:
            scales[f"{layer}.weight"] = key
        elif last in _OF_ACTIVATIONS:
            activations += 1
        elif last not in _MARKERS:
            weights[name] = key
    layers = _json(file.metadata.get("_quantization_metadata", "{}")).get("layers", {})
    for layer, settings in layers.items() if isinstance(layers, dict) else ():
        _require_format(file, layer, settings)
    for name, key in weights.items():
        stored = file.tensors[key]
        if stored.precision not in _FLOATS and not _is_decoded(file, stored.precision):
            raise InvalidInput(_not_decodable(file, f"its {key} is {stored.precision}"))
        if name in scales:
            _require_scale(file, key, stored, scales[name])
    if orphan := next((key for name, key in scales.items() if name not in weights), None):
        raise InvalidInput(_not_decodable(file, f"its {orphan} belongs to no weight"))
    unused = [f"{activations} scales of activations are not used: rounding is by each token"] if activations else []
    if others := len(file.tensors) - len(own):
        unused.append(f"{others} tensors of other models in the file are not used: the folder has its own")
    return Dequantized(file, weights, scales, tuple(unused))


def _require_scale(file: WeightsFile, key: str, weight: Stored, scale_key: str) -> None:
    scale = file.tensors[scale_key]
    numbers = 1
    for size in scale.shape:
        numbers *= size
    per_row = weight.shape[:1] == (numbers,) and scale.shape[:1] == (numbers,) and numbers > 0
    if scale.precision not in ("F32", "F16", "BF16") or not (numbers == 1 or per_row):
        raise InvalidInput(
            _not_decodable(file, f"its {scale_key} is {scale.precision} {list(scale.shape)} for {list(weight.shape)}")
        )


def _require_format(file: WeightsFile, key: str, settings: Any) -> None:
    name = settings.get("format") if isinstance(settings, Mapping) else settings
    if name not in _FORMATS:
        raise InvalidInput(_not_decodable(file, f"its {key} is in the format {name}"))


def _json(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _is_decoded(file: WeightsFile, precision: str) -> bool:
    if not file.is_gguf:
        return False
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

    return precision in {kind.name for kind in SUPPORTED_GGUF_QUANT_TYPES}


def _not_decodable(file: WeightsFile, reason: str) -> str:
    return f"{file.path.name} is quantized in a way that is not read, since {reason}; give a bf16, fp8 or GGUF file."


_KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a LoRA", (".lora_", "lora_up.", "lora_down.", ".hada_", ".lokr_", "lora.up", "lora.down")),
    ("a transformer in bitsandbytes' 4 bits", ("quant_state.bitsandbytes",)),
    ("a transformer in nunchaku's 4 bits", (".qweight", "wscales")),
    ("a FLUX.2 transformer", ("double_stream_modulation_img.",)),
    ("a Chroma transformer", ("distilled_guidance_layer.",)),
    ("a ControlNet", ("controlnet_blocks.", "controlnet_x_embedder.", "control_model.")),
    ("an IP-Adapter", ("ip_adapter_proj_model.", "image_proj.")),
    ("FLUX.1-Redux, which embeds pictures", ("redux_up.",)),
    ("a Qwen-Image transformer", ("img_mod.1.weight", "txt_norm.weight")),
    ("a Stable Diffusion 3 transformer", ("joint_blocks.0.", "pos_embed.proj.weight")),
    ("a Stable Diffusion UNet", ("input_blocks.0.0.", "down_blocks.0.resnets.0.time_emb_proj", "conv_in.weight.unet")),
    ("a Wan transformer", ("blocks.0.self_attn.q.weight", "blocks.0.attn1.norm_added_q")),
)
"""Parts of keys that only this kind of file has."""

_WITHOUT_TRANSFORMER: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a T5 text encoder", ("encoder.block.0.layer.0.SelfAttention.q.weight",)),
    ("a CLIP text encoder", ("embeddings.token_embedding.weight", "text_model.encoder.layers.0.mlp.fc1.weight")),
    ("an autoencoder", ("decoder.conv_in.weight", "decoder.conv_out.weight", "encoder.conv_in.weight")),
)
"""The same of parts that a file with a transformer may have beside it."""

_FLUX = ("double_blocks.0.img_attn.qkv.weight", "transformer_blocks.0.attn.add_q_proj.weight")

_IN_CHANNELS = {384: "a FLUX.1-Fill transformer", 128: "a FLUX.1 transformer for Canny or Depth"}
_FIRST_LAYERS = ("img_in.weight", "x_embedder.weight")


def kind_of_file(keys: Iterable[str]) -> str | None:
    """What a file with `keys` is, as a noun with its article; None if nothing is known of it.

    "a FLUX.1 transformer" for every transformer of its family, whatever it was trained for.
    """
    keys = list(keys)
    for kind, marks in _KINDS:
        if any(mark in key for key in keys for mark in marks):
            return kind
    if any(key.endswith(_FLUX) for key in keys):
        return "a FLUX.1 transformer"
    for kind, marks in _WITHOUT_TRANSFORMER:
        if any(key.endswith(mark) for key in keys for mark in marks):
            return kind
    return None


def require_transformer(file: WeightsFile) -> None:
    """Raise InvalidInput, with what `file` is instead, if it has no transformer of the family of FLUX.1."""
    kind = kind_of_file(file.tensors)
    if kind == "a FLUX.1 transformer":
        return
    use = "; pass it as --lora" if kind == "a LoRA" else "; give the transformer of FLUX.1-Kontext"
    known = kind or f"no model that is known here (its first key is {next(iter(file.tensors), 'missing')})"
    raise InvalidInput(f"{file.path.name} is {known}{use}.")


def transformer_prefix(file: WeightsFile, in_channels: int) -> str:
    """What stands before the names of the FLUX.1 transformer in `file`, which may be nothing.

    Raises InvalidInput, with what the file is instead, if it has none that reads `in_channels`.
    """
    require_transformer(file)
    first = next(key for key in file.tensors if key.endswith(_FLUX))
    prefix = first.removesuffix(next(mark for mark in _FLUX if first.endswith(mark)))
    for layer in _FIRST_LAYERS:
        stored = file.tensors.get(prefix + layer)
        if stored is not None and stored.shape[-1] != in_channels:
            channels = stored.shape[-1]
            raise InvalidInput(
                f"{file.path.name} is {_IN_CHANNELS.get(channels, f'a transformer of {channels} channels')}, and its "
                f"folder is for {in_channels} channels; put it into the folder of its own pipeline."
            )
    return prefix
