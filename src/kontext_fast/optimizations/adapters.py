"""LoRA adapters that are loaded on a transformer, merged while it is accelerated.

What computes in place of layers would pass over the wrappers that PEFT puts around them. So each wrapped layer gives
its place to a plain one with the merged weights, until the acceleration is reverted: the wrappers wait untouched with
the original weights, which leave the device meanwhile, and other adapters are merged from those without reading a file.
Adapters of text encoders stay as they are, since text encoders run as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from kontext_fast.discovery import unknown_name
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.call_tracking import CallTracker, PipelineCall

if TYPE_CHECKING:
    from torch.nn import Linear

_REFUSED = (
    *("load_lora_weights", "unload_lora_weights", "fuse_lora", "unfuse_lora"),
    *("enable_lora", "disable_lora", "delete_adapters"),
)
"""Methods of a pipeline that would look for the wrappers and find none."""


def merge_adapters(pipe: Any, calls: CallTracker, undo: ExitStack) -> tuple[str, ...]:
    """Merge the active adapters of `pipe.transformer` until `undo` is closed, and return their names.

    `pipe.set_adapters` is that of its acceleration meanwhile, and other changes of adapters are refused. Raises
    InvalidInput for adapters on layers that are not plain linear ones, and at a call with a scale of its own.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    transformer = pipe.transformer
    wrapped = [
        (parent, child, layer)
        for parent in transformer.modules()
        if not isinstance(parent, BaseTunerLayer)
        for child, layer in parent._modules.items()
        if isinstance(layer, BaseTunerLayer)
    ]
    for parent, child, layer in wrapped:
        plain = _merged(layer, undo)
        parent._modules[child] = plain
        undo.callback(parent._modules.__setitem__, child, layer)
    for name in _REFUSED:
        calls.set_member(name, partial(_refusing, name), undo)
    calls.on_begin(_require_no_scale, undo)
    return tuple(dict.fromkeys(name for _, _, layer in wrapped for name in layer.active_adapters))


def _merged(layer: Any, undo: ExitStack) -> Linear:
    """A linear layer that computes what `layer`, a wrapper of PEFT, computes with its active adapters."""
    import torch

    base = layer.get_base_layer()
    if type(base) is not torch.nn.Linear or not base.weight.is_floating_point():
        raise InvalidInput(
            f"An adapter is on a {type(base).__name__}, which has no plain weights to merge it into; load the "
            "checkpoint without quantization, or take the adapter off (pipe.unload_lora_weights())."
        )
    plain = torch.nn.Linear(base.in_features, base.out_features, base.bias is not None, device="meta")
    parameters = dict(base.named_parameters())
    originals = {name: parameter.data for name, parameter in parameters.items()}
    if not (layer.merged or layer.disable_adapters):
        # Into tensors of their own, so that the originals stay as they are.
        layer.merge(safe_merge=True)
        layer.merged_adapters.clear()
    for name, parameter in parameters.items():
        setattr(plain, name, torch.nn.Parameter(parameter.data, requires_grad=False))
        if parameter.data_ptr() != (original := originals[name]).data_ptr():
            # They wait in host memory: no step needs them.
            parameter.data = original.to("cpu")
            undo.callback(_bring_back, parameter, original.device)
    return plain


def _bring_back(parameter: Any, device: Any) -> None:
    parameter.data = parameter.data.to(device)


def _require_no_scale(call: PipelineCall) -> None:
    scale = (call.arguments.get("joint_attention_kwargs") or {}).get("scale", 1.0)
    if scale != 1:
        raise InvalidInput(
            f"The adapters are merged, so a scale of {scale} in joint_attention_kwargs would be ignored; leave it out "
            "and give strengths to acceleration.set_adapters(names, strengths)."
        )


def _refusing(name: str, _: type) -> Callable[..., None]:
    def refuse(_pipe: Any, *_: Any, **__: Any) -> None:
        raise InvalidInput(
            f"The adapters are merged while the pipeline is accelerated; call revert(), then {name}, then accelerate "
            "again, or exchange adapters that are loaded by acceleration.set_adapters(names, strengths)."
        )

    return refuse


def check_names(pipe: Any, names: Sequence[str], strengths: Sequence[Any]) -> None:
    """Raise InvalidInput unless adapters of all `names` are loaded on `pipe`, with a strength for each."""
    loaded = sorted({name for adapters in pipe.get_list_adapters().values() for name in adapters})
    for name in names:
        if name not in loaded:
            raise InvalidInput(unknown_name("adapter", name, loaded or ["none: load them, then accelerate again"]))
    if len(names) != len(strengths):
        raise InvalidInput(f"There are {len(strengths)} strengths for {len(names)} adapters; give one for each.")
