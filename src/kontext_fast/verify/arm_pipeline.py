"""The loaded checkpoint of a verification under what an arm applies: a preset, other attention, another precision."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from kontext_fast.optimizations.acceleration import Acceleration, apply_plan
from kontext_fast.optimizations.patching import set_attribute
from kontext_fast.optimizations.presets import resolve
from kontext_fast.pipeline.device import Machine, memory_errors
from kontext_fast.pipeline.load import LoadedCheckpoint, load
from kontext_fast.verify.arms import ArmSpec


class ArmPipeline:
    """One pipeline for all arms, loaded again only where an arm left it unusable."""

    def __init__(self, checkpoint: str, device: Any) -> None:
        """Raises what `load` raises."""
        self._checkpoint = checkpoint
        self.device = device
        self._loaded: LoadedCheckpoint | None = load(checkpoint, device=device)
        self._applied: tuple[object, Acceleration] | None = None
        self.facts = self._loaded.facts

    def load(self) -> Any:
        """The pipeline as it is, with what was applied last."""
        if self._loaded is None:
            self._loaded = load(self._checkpoint, device=self.device)
        return self._loaded.pipe

    @contextmanager
    def prepared(self, spec: ArmSpec) -> Iterator[Any]:
        """The pipeline under what `spec` applies, left as it is where the last arm applied the same: what a preset
        keeps between requests is then still there, and nothing is quantized or compiled twice.

        Raises Refused, InvalidInput or OutOfMemory where that is not possible.
        """
        if self._applied is not None and self._applied[0] != spec.preset:
            _, acceleration = self._applied
            self._applied = None
            acceleration.revert()
        pipe = self.load()
        if spec.other_precision:
            # Whatever happens next, this pipeline is no baseline any more.
            self._loaded = None
            use_other_precision(pipe)
        if self._applied is None:
            machine = Machine.detect(self.device)
            plan = resolve(spec.preset, machine, architecture_only=self.facts.random_weights)
            acceleration = apply_plan(plan, pipe)
            if self._loaded is not None:
                self._applied = spec.preset, acceleration
        with ExitStack() as stack:
            if spec.other_attention:
                stack.enter_context(_other_attention())
            yield pipe

    def release(self) -> None:
        """Free the pipeline's memory; the next arm loads it again."""
        self._applied = None
        self._loaded = None
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


def use_other_precision(pipe: Any) -> None:
    """Turn a bfloat16 transformer into float32 and any other into bfloat16, for good: load again for the old one.

    Its inputs and outputs keep their precision. The time of a step and the guidance are inputs too: diffusers rounds
    them to the transformer's precision after multiplying them by 1000, which moves a step by up to two thousandths.
    Here they keep the values that they had, so that the rounding measured is that of the arithmetic.
    Raises OutOfMemory.
    """
    import torch

    transformer = pipe.transformer
    before = transformer.dtype
    other = torch.float32 if before is torch.bfloat16 else torch.bfloat16
    with memory_errors(f"turning the transformer into {str(other).removeprefix('torch.')}"):
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

    transformer.time_text_embed.forward = embed_exactly
    transformer.forward = forward_cast


def _cast(value: Any, dtype: Any) -> Any:
    import torch

    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
