"""The loaded checkpoint of a verification under what an arm applies: a preset, other attention, another precision."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from kontext_fast.optimizations.acceleration import Acceleration, apply_plan
from kontext_fast.optimizations.patching import set_attribute
from kontext_fast.optimizations.presets import resolve
from kontext_fast.pipeline.device import Machine, memory_errors
from kontext_fast.pipeline.load import LoadedCheckpoint
from kontext_fast.verify.arms import ArmSpec


class ArmPipeline:
    """One pipeline for all arms."""

    def __init__(self, source: AbstractContextManager[LoadedCheckpoint], device: Any) -> None:
        """`source` gives the pipeline, and takes back what it did to it in `release`. Raises what `source` raises."""
        self.device = device
        self._stack = ExitStack()
        self._loaded: LoadedCheckpoint | None = self._stack.enter_context(source)
        self._applied: tuple[object, Acceleration] | None = None
        self.facts = self._loaded.facts

    @property
    def pipe(self) -> Any:
        """The pipeline as it is, with what was applied last."""
        assert self._loaded is not None, "released"
        return self._loaded.pipe

    @contextmanager
    def prepared(self, spec: ArmSpec) -> Iterator[Any]:
        """The pipeline under what `spec` applies, left as it is where the last arm applied the same: what a preset
        keeps between requests is then still there, and nothing is quantized or compiled twice.

        Raises Refused, InvalidInput or OutOfMemory where that is not possible.
        """
        if self._applied is not None and self._applied[0] != spec.preset:
            self._revert()
        if self._applied is None:
            machine = Machine.detect(self.device)
            plan = resolve(spec.preset, machine, architecture_only=self.facts.random_weights)
            self._applied = spec.preset, apply_plan(plan, self.pipe)
        with ExitStack() as stack:
            if spec.other_precision:
                stack.enter_context(use_other_precision(self.pipe))
            if spec.other_attention:
                stack.enter_context(_other_attention())
            yield self.pipe

    def _revert(self) -> None:
        if self._applied is not None:
            _, acceleration = self._applied
            self._applied = None
            acceleration.revert()

    def release(self) -> None:
        """Leave the pipeline as it came, and free its memory where nobody else has it; does nothing a second time."""
        if self._loaded is None:
            return
        self._revert()
        self._loaded = None
        self._stack.close()
        gc.collect()
        if self.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)


@contextmanager
def captured_latents(pipe: Any) -> Iterator[list[npt.NDArray[np.float32]]]:
    """The latents (batch, channels, height, width) of each call inside, right before they are decoded."""
    captured: list[npt.NDArray[np.float32]] = []
    decode = pipe.vae.decode

    def capture_and_decode(latents: Any, *args: Any, **kwargs: Any) -> Any:
        captured.append(latents.detach().float().cpu().numpy().copy())
        return decode(latents, *args, **kwargs)

    with ExitStack() as undo:
        set_attribute(pipe.vae, "decode", capture_and_decode, undo)
        yield captured


def _other_attention() -> Any:
    """Other kernels than those torch prefers."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # The memory-efficient one exists on a GPU only, and does not take every mask and every width of a head.
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


@contextmanager
def use_other_precision(pipe: Any) -> Iterator[None]:
    """Inside, a transformer in float32 multiplies in TF32, and any other one is in float32.

    Its inputs and outputs keep their precision. Raises OutOfMemory.
    """
    import torch

    transformer = pipe.transformer
    with ExitStack() as undo:
        if transformer.dtype is torch.float32:
            _multiply_in_tf32(transformer, undo)
        else:
            _compute_in_float32(transformer, undo)
        yield


def _multiply_in_tf32(transformer: Any, undo: ExitStack) -> None:
    """What linear layers multiply is rounded to the 10 bits that a GPU keeps of it in TF32; sums stay in float32.

    bfloat16 would be a floor two hundred times higher than what float32 itself rounds, below which whole mistakes fit.
    """
    import torch

    with memory_errors("rounding the weights of the transformer to TF32"):
        for layer in transformer.modules():
            if isinstance(layer, torch.nn.Linear):
                undo.callback(setattr, layer.weight, "data", layer.weight.data)
                layer.weight.data = _tf32(layer.weight.data)
                hook = layer.register_forward_pre_hook(lambda _, inputs: tuple(map(_tf32, inputs)))
                undo.callback(hook.remove)


def _tf32(tensor: Any) -> Any:
    """The nearest values with 10 bits of mantissa, and of two the even one."""
    import torch

    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 0xFFF + (bits >> 13 & 1)) & ~0x1FFF).view(torch.float32)


def _compute_in_float32(transformer: Any, undo: ExitStack) -> None:
    """The time of a step and the guidance are inputs too: diffusers rounds them to the transformer's precision after
    multiplying them by 1000, which moves a step by up to two thousandths. Here they keep the values that they had, so
    that the rounding measured is that of the arithmetic.
    """
    import torch

    before, other = transformer.dtype, torch.float32
    undo.callback(_restore, _weights(transformer))
    with memory_errors("turning the transformer into float32"):
        # Not the method of diffusers, which warns of layers that this model does not have.
        torch.nn.Module.to(transformer, other)
    forward, embed = transformer.forward, transformer.time_text_embed.forward
    scaled: dict[str, torch.Tensor] = {}

    def embed_exactly(*inputs: torch.Tensor) -> Any:
        times = [scaled[name] for name in ("timestep", "guidance") if name in scaled]
        return embed(*times, inputs[-1])

    def forward_cast(**inputs: Any) -> Any:
        scaled.clear()
        for name in ("timestep", "guidance"):
            if (value := inputs.get(name)) is not None:
                scaled[name] = (value.to(before) * 1000).float()
        outputs = forward(**{name: _cast(value, other) for name, value in inputs.items()})
        return tuple(_cast(value, before) for value in outputs)

    set_attribute(transformer.time_text_embed, "forward", embed_exactly, undo)
    set_attribute(transformer, "forward", forward_cast, undo)


def _weights(model: Any) -> list[tuple[dict[str, Any], str, Any, Any]]:
    """Where every parameter and buffer of `model` stands, with its precision, or with its values where it has more than
    float32: that holds every value of the smaller ones, so that those need not be there twice.
    """
    return [
        (table, name, tensor, tensor.data if tensor.dtype.itemsize > 4 else tensor.dtype)
        for module in model.modules()
        for table in (module._parameters, module._buffers)
        for name, tensor in table.items()
        if tensor is not None and tensor.is_floating_point()
    ]


def _restore(weights: Sequence[tuple[dict[str, Any], str, Any, Any]]) -> None:
    import torch

    for table, name, tensor, before in weights:
        tensor.data = before if isinstance(before, torch.Tensor) else table[name].data.to(before)
        table[name] = tensor


def _cast(value: Any, dtype: Any) -> Any:
    import torch

    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
