"""A LoRA, merged into the weights while a context is open.

Merging costs nothing per step and works with every optimization, unlike wrapped layers, which a fused projection would
silently bypass. The overwritten weights are kept in host memory and restored: up to the size of the transformer.

What an update makes of a weight W, in float32, with `strength` s and alpha / rank as the scale a:

- LoRA (arXiv:2106.09685): W + s a B A; LoHa (arXiv:2108.06098): W + s a (A1 B1) * (A2 B2); LoKr (arXiv:2212.10650):
  W + s a kron(C, D); a stored difference: W + s D.
- DoRA (arXiv:2402.09353): V = W + a B A, then W + s (m V / |V| - W) with the norm of every row, or of every column
  where the file has one magnitude per column. At s = 1 that is what PEFT and kohya's trainer compute.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.device import is_out_of_host_memory, memory_errors
from kontext_fast.pipeline.layer_names import split_rows
from kontext_fast.pipeline.lora_file import LayerUpdate, read_lora

if TYPE_CHECKING:
    import torch

    from kontext_fast.pipeline.load import LoadedCheckpoint


@contextmanager
def load_lora(pipe: Any, path: str | Path, strength: float = 1.0) -> Iterator[tuple[str, ...]]:
    """Apply the LoRA in the .safetensors file at `path` to `pipe` inside the context; its removal is bit-identical.

    Yields what of the file is not used, one sentence each. Several add up, in the order in which they are entered.
    Enter it before `accelerate`, which may rewrite the weights that it changes. Raises InvalidInput or OutOfMemory.
    """
    path = Path(path).expanduser()
    if not isinstance(strength, int | float) or not math.isfinite(strength):
        raise InvalidInput(f"The LoRA strength is {strength}; give a number, for example 1.0.")
    if any(getattr(module, "fused_projections", False) for module in pipe.transformer.modules()):
        raise InvalidInput("The projections of this pipeline are fused already; load the LoRA before accelerating it.")
    with ExitStack() as undo:
        with memory_errors(f"merging {path.name}"):
            updates, unused = read_lora(pipe, path)
            for update in updates:
                _merge(pipe, path, update, strength, undo)
        yield unused


@contextmanager
def load_with_loras(
    checkpoint: str, loras: Sequence[tuple[str, float]], *, device: Any = None, in_host_memory: bool = False
) -> Iterator[LoadedCheckpoint]:
    """`load(checkpoint)` with LoRAs, pairs of path and strength, merged inside the context.

    Records name them beside the checkpoint, without the folders of this machine, and the hash of its weights is of all
    files. Raises what `load` and `load_lora` raise.
    """
    from kontext_fast.pipeline.load import load

    loaded = load(checkpoint, device=device, in_host_memory=in_host_memory)
    if not loras:
        yield loaded
        return
    with ExitStack() as stack:
        unused = [stack.enter_context(load_lora(loaded.pipe, path, strength)) for path, strength in loras]
        names = " and ".join(f"{Path(path).name}:{strength:g}" for path, strength in loras)
        facts = loaded.facts.model_copy(
            update={
                "name": f"{loaded.facts.name} with {names}",
                "weights_sha256": hash_with_loras(loaded.facts.weights_sha256, loras),
            }
        )
        yield replace(
            loaded, facts=facts, unused=(*loaded.unused, *(sentence for of_lora in unused for sentence in of_lora))
        )


def hash_with_loras(weights_sha256: str | None, loras: Sequence[tuple[str, float]]) -> str:
    """The identity of weights into which LoRAs were merged."""
    digests = [f"{hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()}:{value:g}" for path, value in loras]
    return hashlib.sha256("\n".join([weights_sha256 or "", *digests]).encode()).hexdigest()


def _merge(pipe: Any, path: Path, update: LayerUpdate, strength: float, undo: ExitStack) -> None:
    """Overwrite what `update` changes until `undo` is closed. Raises InvalidInput where it does not fit."""
    import torch

    model = getattr(pipe, update.target.component)
    layers = {piece.layer: model.get_submodule(piece.layer) for piece in update.target.pieces}
    for kind in ("weight", "bias"):
        if not _changes(update, kind):
            continue
        tensors: dict[str, Any] = {name: getattr(layer, kind, None) for name, layer in layers.items()}
        if any(tensor is None or not tensor.is_floating_point() for tensor in tensors.values()):
            raise _does_not_fit(path, update, f"there is no plain {kind} to change")
        rows_of = {name: len(tensor) for name, tensor in tensors.items()}
        parts = [tensors[piece.layer].data[piece.rows(rows_of[piece.layer])] for piece in update.target.pieces]
        try:
            changed = _changed(update, kind, torch.cat([part.float() for part in parts]), strength)
            rows = [values for _, values in split_rows(changed, update.target.pieces, rows_of)]
        except (ValueError, IndexError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or is_out_of_host_memory(error):
                raise
            raise _does_not_fit(path, update, str(error).splitlines()[0]) from error
        for piece, part, values in zip(update.target.pieces, parts, rows, strict=True):
            undo.callback(_write, tensors[piece.layer], piece.rows(rows_of[piece.layer]), part.to("cpu", copy=True))
            part.copy_(values)


def _write(parameter: Any, rows: slice, values: torch.Tensor) -> None:
    # Where it is now: an acceleration that was reverted in between gave it other memory.
    parameter.data[rows].copy_(values)


def _changes(update: LayerUpdate, kind: str) -> bool:
    in_bias = update.parts.keys() & {"diff_b", "up_bias"}
    return bool(in_bias) if kind == "bias" else bool(update.parts.keys() - {"diff_b", "up_bias", "alpha"})


def _changed(update: LayerUpdate, kind: str, stored: torch.Tensor, strength: float) -> torch.Tensor:
    """What becomes of `stored`, the weight or bias of the layer as the file knows it, in float32.

    Raises ValueError where shapes do not fit.
    """
    parts = {name: part.to(stored.device).float() for name, part in update.parts.items()}
    if kind == "bias":
        difference = parts["diff_b"] if "diff_b" in parts else update.scale * parts["up_bias"]
    else:
        difference = _difference(parts, update.scale)
    if difference.shape != stored.shape:
        raise ValueError(f"it is for shape {list(difference.shape)}, and this layer has {list(stored.shape)}")
    if kind == "weight" and "magnitude" in parts:
        difference = _rescaled(stored + difference, parts["magnitude"]) - stored
    return stored + strength * difference


def _difference(parts: dict[str, torch.Tensor], scale: float) -> torch.Tensor:
    """What is added to a weight [out, in], before any rescaling."""
    import torch

    def factor(name: str) -> torch.Tensor:
        return parts[name] if name in parts else parts[f"{name}_a"] @ parts[f"{name}_b"]

    if "diff" in parts:
        return parts["diff"]
    if "up" in parts:
        return scale * (parts["up"] @ parts["down"])
    if "hada_w1_a" in parts:
        return scale * (factor("hada_w1") * factor("hada_w2"))
    return scale * torch.kron(factor("lokr_w1"), factor("lokr_w2"))


def _rescaled(weight: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """`weight` [out, in] with rows, or columns, of the lengths `magnitude`."""
    import torch

    if magnitude.numel() == weight.shape[0] and magnitude.shape[:1] == weight.shape[:1]:
        rows: torch.Tensor = magnitude.reshape(-1, 1) / torch.linalg.vector_norm(weight, dim=1, keepdim=True)
        return rows * weight
    if magnitude.numel() == weight.shape[1]:
        columns: torch.Tensor = magnitude.reshape(1, -1) / torch.linalg.vector_norm(weight, dim=0, keepdim=True)
        return columns * weight
    raise ValueError(f"its magnitudes are {list(magnitude.shape)} for {list(weight.shape)}")


def _does_not_fit(path: Path, update: LayerUpdate, reason: str) -> InvalidInput:
    return InvalidInput(
        f"{path} is a LoRA for another model, since {update.name} does not fit ({reason}); give another one."
    )


_DISTILLED: tuple[tuple[str, float, int], ...] = (
    (r"hyper-flux\.1-dev-(8|16)steps?-lora", 0.125, 0),
    (r"flux\.1-turbo-alpha", 1.0, 8),
)
"""Step-distilled LoRAs by their published names: strength and steps that their authors state, 0 for those in the name.
https://huggingface.co/ByteDance/Hyper-SD and https://huggingface.co/alimama-creative/FLUX.1-Turbo-Alpha."""


def distilled_hint(path: str | Path, strength: float, steps: int) -> str | None:
    """A sentence on how the authors of a step-distilled LoRA run it, where it is run otherwise; by its name alone."""
    name = "/".join(Path(path).expanduser().absolute().parts[-3:]).lower()
    for pattern, published, published_steps in _DISTILLED:
        if match := re.search(pattern, name):
            wanted = published_steps or int(match[1])
            if strength == published and steps == wanted:
                return None
            return (
                f"{Path(path).name} looks like a step-distilled LoRA whose authors run it at strength {published:g} "
                f"with {wanted} steps: --lora {path}:{published:g} --steps {wanted}."
            )
    return None
