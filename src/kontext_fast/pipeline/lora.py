"""A LoRA, merged into the weights while a context is open.

Merging costs nothing per step and works with every optimization, unlike wrapped layers, which a fused projection would
silently bypass. The overwritten weights are kept in host memory and restored: up to the size of the transformer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.device import memory_errors

if TYPE_CHECKING:
    import torch

_DOWN = ".lora_A.weight"
_UP = ".lora_B.weight"


@dataclass(frozen=True)
class _Update:
    """`scale * up @ down` is added to the weight of `layer`; up is (out, rank), down is (rank, in)."""

    layer: torch.nn.Linear
    up: torch.Tensor
    down: torch.Tensor
    scale: float


@contextmanager
def load_lora(pipe: Any, path: str | Path, strength: float = 1.0) -> Iterator[None]:
    """Apply the LoRA in the .safetensors file at `path` to `pipe` inside the context; its removal is bit-identical.

    Enter it before `accelerate`, which may rewrite the weights that it changes. Raises InvalidInput or OutOfMemory.
    """
    path = Path(path).expanduser()
    if not isinstance(strength, int | float) or not math.isfinite(strength):
        raise InvalidInput(f"The LoRA strength is {strength}; give a number, for example 1.0.")
    if any(getattr(module, "fused_projections", False) for module in pipe.transformer.modules()):
        raise InvalidInput("The projections of this pipeline are fused already; load the LoRA before accelerating it.")
    updates = _read_updates(pipe, path)
    with ExitStack() as undo:
        with memory_errors(f"merging {path.name}"):
            for update in updates:
                _merge(update, strength, undo)
        yield


def _merge(update: _Update, strength: float, undo: ExitStack) -> None:
    import torch

    weight = update.layer.weight.data
    original = weight.to("cpu", copy=True)
    up, down = (factor.to(weight.device, torch.float32) for factor in (update.up, update.down))
    merged = weight.float() + strength * update.scale * (up @ down)
    undo.callback(weight.copy_, original)
    weight.copy_(merged)


def _read_updates(pipe: Any, path: Path) -> list[_Update]:
    if not path.is_file():
        raise InvalidInput(f"There is no LoRA {path}; check the path.")
    if path.suffix != ".safetensors":
        raise InvalidInput(f"{path} is not a .safetensors file, and other formats can run code; convert it.")
    tensors, alphas, metadata = _read_file(pipe, path)
    names = {key.removesuffix(_DOWN) for key in tensors if key.endswith(_DOWN)}
    unread = [key for key in tensors if not key.endswith((_DOWN, _UP)) or key.rpartition(".lora_")[0] not in names]
    if not names or unread:
        reason = f"holds {unread[0]}" if unread and names else "has no LoRA layers"
        raise InvalidInput(f"{path} is not a plain LoRA for FLUX.1-Kontext, since it {reason}; give another one.")
    return [_update(pipe, name, tensors, _scale(name, tensors, alphas, metadata), path) for name in sorted(names)]


def _read_file(pipe: Any, path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Tensors and alphas under the names of diffusers, whichever trainer wrote them, and the stored settings."""
    from safetensors import SafetensorError

    try:
        tensors, alphas, metadata = pipe.lora_state_dict(
            str(path.parent),
            weight_name=path.name,
            use_safetensors=True,
            local_files_only=True,
            return_alphas=True,
            return_lora_metadata=True,
        )
    # The converters of other trainers' files fail with any of these on a file that is no LoRA.
    except (SafetensorError, OSError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise InvalidInput(f"{path} could not be read as a LoRA for FLUX.1-Kontext; give another one.") from error
    return tensors, alphas or {}, metadata or {}


def _scale(name: str, tensors: dict[str, Any], alphas: dict[str, Any], metadata: dict[str, Any]) -> float:
    """alpha / rank where the file has an alpha, else 1, as in files whose trainer already applied it."""
    rank = int(tensors[name + _DOWN].shape[0])
    component, _, layer = name.partition(".")
    settings = {key.removeprefix(f"{component}."): value for key, value in metadata.items()}
    alpha = alphas.get(f"{name}.alpha")
    if alpha is None:
        alpha = (settings.get("alpha_pattern") or {}).get(layer, settings.get("lora_alpha"))
    if alpha is None:
        return 1.0
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _update(pipe: Any, name: str, tensors: dict[str, Any], scale: float, path: Path) -> _Update:
    import torch

    component, _, layer_name = name.partition(".")
    down, up = tensors[name + _DOWN], tensors.get(name + _UP)
    try:
        layer = getattr(pipe, component).get_submodule(layer_name)
    except AttributeError:
        layer = None
    if (
        not isinstance(layer, torch.nn.Linear)
        or not layer.weight.is_floating_point()
        or up is None
        or tuple(layer.weight.shape) != (up.shape[0], down.shape[1])
        or up.shape[1] != down.shape[0]
    ):
        raise InvalidInput(f"{path} is a LoRA for another model, since {name} does not fit; give another one.")
    return _Update(layer, up, down, scale)
