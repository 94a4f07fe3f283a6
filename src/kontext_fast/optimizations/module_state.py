"""What a recording of a module's forward depends on besides its inputs, so that a replay never misses a change."""

from __future__ import annotations

from typing import Any

from kontext_fast.optimizations.patching import submodules

_KNOWN = ("torch.nn.", "transformers.", "diffusers.")


def module_state(root: Any) -> tuple[Any, ...]:
    """Identity and address of everything in `root`, a torch module.

    Equal states compute the same by the same kernels, whatever numbers are in the weights: a recording reads those
    anew. Half a millisecond for a thousand modules.
    """
    state: list[Any] = []
    for module in submodules(root):
        state.append((id(module), module.training))
        state += [
            (id(tensor), tensor.data_ptr(), tensor.dtype, tensor.device)
            for tensors in (module._parameters, module._buffers)
            for tensor in tensors.values()
            if tensor is not None
        ]
    config = getattr(root, "config", None)
    state.append(getattr(config, "_attn_implementation", None))
    return tuple(state)


def reason_against_recording(root: Any) -> str | None:
    """Why the forward of `root` must run as Python code, in a few words, or None.

    Hooks, foreign classes (adapters, quantized layers) and subclasses of tensors may do anything at each call.
    """
    import torch

    plain = (torch.nn.Parameter, torch.Tensor, type(None))
    for module in submodules(root):
        if module is not root and (module._forward_hooks or module._forward_pre_hooks):
            return "hooks"
        if module is not root and "forward" in vars(module):
            return "a replaced forward"
        if not type(module).__module__.startswith(_KNOWN):
            return f"a {type(module).__name__} of {type(module).__module__.split('.')[0]}"
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if type(tensor) not in plain:
                return f"weights of class {type(tensor).__name__}"
        if module.training:
            return "training mode"
    return None
