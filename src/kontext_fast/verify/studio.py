"""Makes the outputs of one arm after another on one loaded pipeline, through the same call path as every edit."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kontext_fast.bench.privacy import without_private_facts
from kontext_fast.errors import Cancelled, KontextError, OutOfMemory
from kontext_fast.items.base import Item
from kontext_fast.optimizations.machine import Machine
from kontext_fast.optimizations.plan import resolve
from kontext_fast.pipeline.load import LoadedCheckpoint, load
from kontext_fast.pipeline.request import EditRequest
from kontext_fast.records.schema import Output
from kontext_fast.verify.arms import Plan
from kontext_fast.verify.precision import use_other_precision

if TYPE_CHECKING:
    from PIL.Image import Image

Latents = dict[int, npt.NDArray[np.float32]]
"""By seed: (channels, height / 8, width / 8)."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all arms have in common."""

    seeds: tuple[int, ...]
    steps: int
    guidance: float


class Studio:
    """A loaded checkpoint and the settings of a verification."""

    def __init__(self, checkpoint: str, device: Any, settings: Settings) -> None:
        """Raises what `load` raises."""
        self._checkpoint = checkpoint
        self._device = device
        self._settings = settings
        self._loaded: LoadedCheckpoint | None = load(checkpoint, device=device)
        self.facts = self._loaded.facts
        self.batch = len(settings.seeds)

    def fit_batch(self, item: Item) -> None:
        """Fall back to one image per call where the seeds of an item do not fit into a GPU's memory at once."""
        if self._device.type != "cuda" or self.batch == 1 or self._loaded is None:
            return
        from kontext_fast.pipeline.edit import edit

        request = EditRequest(item.instruction, item.image, steps=1, seed=self._settings.seeds[0], batch=self.batch)
        try:
            edit(self._loaded.pipe, request)
        except OutOfMemory:
            self.batch = 1

    def make(
        self, plan: Plan, items: list[int], keep: Callable[[Image], str]
    ) -> Iterator[tuple[Item, list[Output], Latents]]:
        """The outputs of the items of `plan` with these positions, item by item.

        An item that fails gives outputs with the reason and the others go on; `keep` stores an image. Raises Refused,
        InvalidInput or OutOfMemory where the arm as a whole cannot run, and Cancelled.
        """
        with ExitStack() as stack:
            pipe = self._pipe(plan)
            machine = Machine.detect(self._device)
            applied = resolve(plan.preset, machine, architecture_only=self.facts.kind == "random").apply(pipe)
            stack.callback(applied.revert)
            if plan.other_attention:
                stack.enter_context(_other_attention(self._device))
            for index in items:
                item = plan.items[index]
                try:
                    made = self._edit(pipe, plan, item, index, keep)
                except Cancelled:
                    raise
                except Exception as error:  # noqa: BLE001 - one item that fails must not take the others with it
                    reason = str(error) if isinstance(error, KontextError) else f"{type(error).__name__}: {error}"
                    failure = " ".join(without_private_facts(reason).split())
                    seeds = self._settings.seeds[-1:] if plan.alone else self._settings.seeds
                    made = [Output(item=item.id, seed=seed, image=None, failure=failure) for seed in seeds], {}
                yield item, *made

    def release(self) -> None:
        """Free the pipeline's memory; the next arm loads it again."""
        self._loaded = None
        gc.collect()
        if self._device.type == "cuda":
            import torch

            torch.cuda.empty_cache()

    def _pipe(self, plan: Plan) -> Any:
        if self._loaded is None:
            self._loaded = load(self._checkpoint, device=self._device)
        pipe = self._loaded.pipe
        if plan.other_precision:
            # Whatever happens next, this one is no baseline any more.
            self._loaded = None
            use_other_precision(pipe)
        return pipe

    def _edit(
        self, pipe: Any, plan: Plan, item: Item, index: int, keep: Callable[[Image], str]
    ) -> tuple[list[Output], Latents]:
        from kontext_fast.pipeline.edit import edit

        settings = self._settings
        batch = 1 if plan.alone else self.batch
        outputs: list[Output] = []
        latents: Latents = {}
        for first in settings.seeds[-1:] if plan.alone else settings.seeds[::batch]:
            request = EditRequest(
                plan.instructions[index] if plan.instructions else item.instruction,
                item.image,
                steps=max(1, round(settings.steps * plan.steps_factor)),
                guidance=settings.guidance,
                seed=first,
                batch=batch,
            )
            with _captured_latents(pipe) as captured:
                result = edit(pipe, request)
            for position, (seed, image) in enumerate(zip(result.seeds, result.images, strict=True)):
                outputs.append(Output(item=item.id, seed=seed, image=keep(image), step_kinds=result.step_kinds))
                if captured:
                    latents[seed] = captured[0][position]
        return outputs, latents


@contextmanager
def _captured_latents(pipe: Any) -> Iterator[list[npt.NDArray[np.float32]]]:
    """The latents (batch, channels, height, width) of one call, right before they are decoded."""
    captured: list[npt.NDArray[np.float32]] = []
    own = vars(pipe.vae)
    before = own.get("decode")
    decode = pipe.vae.decode

    def capturing(latents: Any, *args: Any, **kwargs: Any) -> Any:
        captured.append(latents.detach().float().cpu().numpy().copy())
        return decode(latents, *args, **kwargs)

    own["decode"] = capturing
    try:
        yield captured
    finally:
        if before is None:
            del own["decode"]
        else:
            own["decode"] = before


def _other_attention(device: Any) -> Any:
    """Another kernel than the one torch prefers on this device."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION if device.type == "cuda" else SDPBackend.MATH)
