"""Makes the outputs of one arm after another on one loaded pipeline, through the same call path as every edit."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kontext_fast.bench.recorder import redact
from kontext_fast.datasets.base import Item
from kontext_fast.errors import Cancelled, InvalidInput, KontextError, OutOfMemory
from kontext_fast.optimizations.acceleration import Acceleration
from kontext_fast.optimizations.machine import Machine
from kontext_fast.optimizations.plan import resolve
from kontext_fast.pipeline.load import load
from kontext_fast.pipeline.request import EditRequest
from kontext_fast.pipeline.source import LoadedCheckpoint
from kontext_fast.records.schema import Output
from kontext_fast.verify.arms import CONTROL_CALLS, Plan
from kontext_fast.verify.batching import calls_of
from kontext_fast.verify.precision_floor import use_other_precision

if TYPE_CHECKING:
    from PIL.Image import Image

Latents = dict[int, npt.NDArray[np.float32]]
"""By seed: (channels, height / 8, width / 8)."""

LAUNCH_BOUND_PARAMETERS = 10**9
"""A GPU spends the edits of a smaller transformer on launching kernels, so that a batch takes hardly longer."""
LAUNCH_BOUND_BATCH = 64
WARM_UP_EDITS = 2
TIMED_EDITS = 7
HOPELESS = 8
"""Items that fail one after another before the rest of an arm is not tried any more: each might compile for minutes."""
_WRITERS = 8
"""Threads that encode and write images, which is compression and waiting for the disk."""


@dataclass(frozen=True)
class Made:
    """What was made of one item."""

    item: Item
    outputs: list[Output]
    latents: Latents


_Edit = Callable[[tuple[int, ...]], list[Made]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all arms have in common."""

    seeds: tuple[int, ...]
    guidance: float


class ArmRunner:
    """A loaded checkpoint and the settings of a verification."""

    def __init__(self, checkpoint: str, device: Any, settings: Settings, batch: int | None = None) -> None:
        """`batch`: images per call; None for what suits checkpoint and device. Raises what `load` raises."""
        self._checkpoint = checkpoint
        self._device = device
        self._seeds = settings.seeds
        self._guidance = settings.guidance
        self._loaded: LoadedCheckpoint | None = load(checkpoint, device=device)
        self._applied: tuple[object, Acceleration] | None = None
        self.facts = self._loaded.facts
        self.batch = self._whole_items(batch or self._usual_batch())

    def _usual_batch(self) -> int:
        small = self.facts.transformer_parameters < LAUNCH_BOUND_PARAMETERS
        return LAUNCH_BOUND_BATCH if small and self._device.type == "cuda" else len(self._seeds)

    def _whole_items(self, batch: int) -> int:
        """`batch` or fewer, so that the seeds of an item are in one call wherever they fit into one."""
        seeds = len(self._seeds)
        return batch if batch < seeds else batch - batch % seeds

    def fit_batch(self, item: Item) -> None:
        """Halve the images per call until a GPU's memory holds them."""
        if self._device.type != "cuda":
            return
        from kontext_fast.pipeline.edit import edit

        while self.batch > 1:
            first = self._seeds[0]
            try:
                edit(self._pipe(), EditRequest(item.instruction, item.image, steps=1, seed=first, batch=self.batch))
            except OutOfMemory:
                self.batch = self._whole_items(self.batch // 2)
            else:
                return

    def calls(self, plan: Plan) -> list[tuple[int, ...]]:
        """Positions of the items of `plan`, call by call."""
        from kontext_fast.pipeline.edit import plan_for

        pipe = self._pipe()

        def size_of(item: Item) -> object:
            try:
                planned = plan_for(pipe, item.image.size, None)
            except InvalidInput:
                # No size that is planned: it fails by itself, and takes nobody with it.
                return item.id
            return planned.size, planned.reference_size

        per_call = max(1, plan.batch // len(self._seeds))
        calls = calls_of(plan.items, per_call, size_of, apart=plan.apart, in_calls=CONTROL_CALLS)
        return calls[::-1] if plan.backwards else calls

    def make(
        self, plan: Plan, calls: Sequence[tuple[int, ...]], keep: Callable[[Image], str]
    ) -> Iterator[tuple[Made, ...]]:
        """The outputs of the items of `plan` with these positions, call by call.

        Where a call fails, its items are made one by one; an item that fails then gives outputs with the reason, and
        the others go on. `keep` stores an image and may be called by several threads. Raises Refused, InvalidInput or
        OutOfMemory where the arm as a whole cannot run, and Cancelled.
        """
        with ExitStack() as stack:
            pipe = self._prepared(plan)
            if plan.other_attention:
                stack.enter_context(_other_attention())
            writers = stack.enter_context(ThreadPoolExecutor(_WRITERS))

            def edit(indices: tuple[int, ...]) -> list[Made]:
                return self._edit(pipe, plan, indices, lambda images: list(writers.map(keep, images)))

            failed: list[Output] = []
            for indices in calls:
                if len(failed) >= HOPELESS * len(self._seeds):
                    yield tuple(self._failed(plan, index, failed[-1].failure or "") for index in indices)
                    continue
                made = self._together(plan, edit, indices)
                outputs = [output for one in made for output in one.outputs]
                # One output that was made says that the arm as a whole works.
                failed = [*failed, *outputs] if not any(output.image for output in outputs) else []
                yield tuple(made)

    def _together(self, plan: Plan, edit: _Edit, indices: tuple[int, ...]) -> list[Made]:
        try:
            return edit(indices)
        except Cancelled:
            raise
        except Exception as error:  # noqa: BLE001 - one item that fails must not take the others with it
            failure = _sentence(error)
            # That many do not fit into memory at once is no fault of any of them.
            unexplained = None if isinstance(error, OutOfMemory) else failure
        if len(indices) == 1:
            return [self._failed(plan, indices[0], failure)]
        made = [one for index in indices for one in self._together(plan, edit, (index,))]
        if unexplained and not any(output.failure for one in made for output in one.outputs):
            for one in made:
                one.outputs[:] = [output.model_copy(update={"failure": unexplained}) for output in one.outputs]
        return made

    def _failed(self, plan: Plan, index: int, failure: str) -> Made:
        item = plan.items[index]
        return Made(item, [Output(item=item.id, seed=seed, image=None, failure=failure) for seed in self._seeds], {})

    def time(self, plan: Plan) -> tuple[float, ...]:
        """Seconds of single edits of `plan`, one after another, after a few that are not counted.

        Raises what `edit` raises: an item on which it fails is no place to read a clock.
        """
        from kontext_fast.pipeline.edit import edit

        pipe = self._prepared(plan)
        found = []
        for count in range(WARM_UP_EDITS + TIMED_EDITS):
            index = max(0, count - WARM_UP_EDITS) % len(plan.items)
            request = self._request(plan, index, self._seeds[0])
            self._synchronize()
            start = perf_counter()
            edit(pipe, request)
            self._synchronize()
            found.append(perf_counter() - start)
        return tuple(found[WARM_UP_EDITS:])

    def release(self) -> None:
        """Free the pipeline's memory; the next arm loads it again."""
        self._applied = None
        self._loaded = None
        gc.collect()
        if self._device.type == "cuda":
            import torch

            torch.cuda.empty_cache()

    def _pipe(self) -> Any:
        if self._loaded is None:
            self._loaded = load(self._checkpoint, device=self._device)
        return self._loaded.pipe

    def _prepared(self, plan: Plan) -> Any:
        """The pipeline under what `plan` applies, left as it is where the last arm applied the same: what a preset
        keeps between requests is then still there, and nothing is quantized or compiled twice.
        """
        if self._applied is not None and self._applied[0] != plan.preset:
            _, acceleration = self._applied
            self._applied = None
            acceleration.revert()
        pipe = self._pipe()
        if plan.other_precision:
            # Whatever happens next, this one is no baseline any more.
            self._loaded = None
            use_other_precision(pipe)
        if self._applied is None:
            machine = Machine.detect(self._device)
            resolved = resolve(plan.preset, machine, architecture_only=self.facts.random_weights)
            acceleration = resolved.apply(pipe)
            if self._loaded is not None:
                self._applied = plan.preset, acceleration
        return pipe

    def _request(self, plan: Plan, index: int, seed: int) -> EditRequest:
        item = plan.items[index]
        return EditRequest(
            plan.instructions[index] if plan.instructions else item.instruction,
            item.image,
            steps=plan.steps,
            guidance=self._guidance,
            seed=seed,
        )

    def _edit(
        self, pipe: Any, plan: Plan, indices: tuple[int, ...], keep: Callable[[Sequence[Image]], list[str]]
    ) -> list[Made]:
        """One call for all seeds of these items, or several where not even those of one item fit into one."""
        from kontext_fast.pipeline.edit import edit_together

        made = [Made(plan.items[index], [], {}) for index in indices]
        asked = [(one, index, seed) for one, index in zip(made, indices, strict=True) for seed in self._seeds]
        for start in range(0, len(asked), plan.batch):
            now = asked[start : start + plan.batch]
            with _captured_latents(pipe) as captured:
                results = edit_together(pipe, [self._request(plan, index, seed) for _, index, seed in now])
            digests = keep([result.images[0] for result in results])
            for position, ((one, _, seed), result, digest) in enumerate(zip(now, results, digests, strict=True)):
                one.outputs.append(Output(item=one.item.id, seed=seed, image=digest, step_kinds=result.step_kinds))
                if captured:
                    one.latents[seed] = captured[0][position]
        return made

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)


def _sentence(error: Exception) -> str:
    """What a record says of a failed edit."""
    reason = str(error) if isinstance(error, KontextError) else f"{type(error).__name__}: {error}"
    return " ".join(redact(reason).split())


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


def _other_attention() -> Any:
    """Other kernels than those torch prefers."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # The memory-efficient one exists on a GPU only, and does not take every mask and every width of a head.
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
