"""Generates the outputs of one arm after another, through the same call path as every edit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kontext_fast.datasets.base import Item
from kontext_fast.errors import Cancelled, InvalidInput, KontextError, OutOfMemory
from kontext_fast.pipeline.edit import EditRequest
from kontext_fast.pipeline.edit_many import LAUNCH_BOUND_BATCH, LAUNCH_BOUND_PARAMETERS
from kontext_fast.records.privacy import redact
from kontext_fast.records.schema import Output
from kontext_fast.verify.arm_pipeline import ArmPipeline, captured_latents
from kontext_fast.verify.arms import ArmSpec, Batch, make_batches
from kontext_fast.verify.conditions import TRUE_CFG

if TYPE_CHECKING:
    from PIL.Image import Image

WARM_UP_EDITS = 2
TIMED_EDITS = 7
MAX_FAILURES = 8
"""Items that fail one after another before the rest of an arm is given up: each might compile for minutes."""
_WRITERS = 8
"""Threads that encode and write images, which is compression and waiting for the disk."""


@dataclass(frozen=True)
class ItemOutputs:
    """The outputs of one item, of all seeds."""

    item: Item
    outputs: list[Output] = field(default_factory=list)
    latents: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    """By seed: (channels, height / 8, width / 8)."""


_EditBatch = Callable[[Batch], list[ItemOutputs]]


class ImageGenerator:
    """Makes the same seeds of every item on one pipeline."""

    def __init__(
        self, pipeline: ArmPipeline, *, seeds: Sequence[int], guidance: float, images_per_call: int | None
    ) -> None:
        """`images_per_call` of None is what suits checkpoint and device; seeds of an item share a call if they fit."""
        self._pipeline = pipeline
        self._seeds = tuple(seeds)
        self._guidance = guidance
        self.images_per_call = self._whole_items(images_per_call or self._default_images_per_call())

    def _default_images_per_call(self) -> int:
        small = self._pipeline.facts.transformer_parameters < LAUNCH_BOUND_PARAMETERS
        return LAUNCH_BOUND_BATCH if small and self._pipeline.device.type == "cuda" else len(self._seeds)

    def _whole_items(self, images: int) -> int:
        """`images` or fewer, so that no item is divided between two calls unless its seeds do not fit into one."""
        seeds = len(self._seeds)
        return images if images < seeds else images - images % seeds

    def fit_memory(self, item: Item) -> None:
        """Halve the images per call until a GPU's memory holds them."""
        if self._pipeline.device.type != "cuda":
            return
        from kontext_fast.pipeline.edit import edit

        while self.images_per_call > 1:
            request = EditRequest(
                item.instruction, item.image, steps=1, seed=self._seeds[0], batch=self.images_per_call
            )
            try:
                edit(self._pipeline.pipe, request)
            except OutOfMemory:
                self.images_per_call = self._whole_items(self.images_per_call // 2)
            else:
                return

    def batches(self, spec: ArmSpec) -> list[Batch]:
        from kontext_fast.pipeline.edit import plan_for

        pipe = self._pipeline.pipe

        def size_of(item: Item) -> object:
            try:
                plan = plan_for(pipe, item.image.size, None)
            except InvalidInput:
                # An item whose size cannot be planned gets a batch of its own, in which it fails.
                return item.id
            return plan.size, plan.reference_size

        items_per_call = max(1, spec.images_per_call // len(self._seeds))
        batches = make_batches(spec.items, items_per_call, size_of, separate=spec.separate)
        return batches[::-1] if spec.reverse_order else batches

    def generate(
        self, spec: ArmSpec, batches: Sequence[Batch], put_image: Callable[[Image], str]
    ) -> Iterator[list[ItemOutputs]]:
        """The outputs of `batches` of the items of `spec`, one batch after the other.

        Where a batch fails, its items are made one by one; an item that fails then gives outputs with the reason, and
        the others go on. `put_image` stores an image and may be called by several threads. Raises Refused, InvalidInput
        or OutOfMemory where the arm as a whole cannot run, and Cancelled.
        """
        with self._pipeline.prepared(spec) as pipe, ThreadPoolExecutor(_WRITERS) as writers:

            def edit_batch(batch: Batch) -> list[ItemOutputs]:
                return self._edit(pipe, spec, batch, lambda images: list(writers.map(put_image, images)))

            failed: list[Output] = []
            for batch in batches:
                if len(failed) >= MAX_FAILURES * len(self._seeds):
                    yield [self._failed(spec, index, failed[-1].failure or "") for index in batch]
                    continue
                results = self._edit_or_split(spec, edit_batch, batch)
                outputs = [output for result in results for output in result.outputs]
                # A single image shows that the arm as a whole works.
                failed = [*failed, *outputs] if not any(output.image for output in outputs) else []
                yield results

    def _edit_or_split(self, spec: ArmSpec, edit_batch: _EditBatch, batch: Batch) -> list[ItemOutputs]:
        try:
            return edit_batch(batch)
        except Cancelled:
            raise
        except Exception as error:  # noqa: BLE001 - one item that fails must not stop the others
            failure = _sentence(error)
            # Too many items for the memory at once is not a failure of any of them.
            unexplained = None if isinstance(error, OutOfMemory) else failure
        if len(batch) == 1:
            return [self._failed(spec, batch[0], failure)]
        results = [result for index in batch for result in self._edit_or_split(spec, edit_batch, (index,))]
        if unexplained and not any(output.failure for result in results for output in result.outputs):
            for result in results:
                result.outputs[:] = [output.model_copy(update={"failure": unexplained}) for output in result.outputs]
        return results

    def _failed(self, spec: ArmSpec, index: int, failure: str) -> ItemOutputs:
        item = spec.items[index]
        return ItemOutputs(item, [Output(item=item.id, seed=seed, image=None, failure=failure) for seed in self._seeds])

    def _edit(
        self, pipe: Any, spec: ArmSpec, batch: Batch, put_images: Callable[[Sequence[Image]], list[str]]
    ) -> list[ItemOutputs]:
        """One call for all seeds of these items, or several where not even those of one item fit into one."""
        from kontext_fast.pipeline.edit import edit_together

        results = {index: ItemOutputs(spec.items[index]) for index in batch}
        pairs = [(index, seed) for index in batch for seed in self._seeds]
        for start in range(0, len(pairs), spec.images_per_call):
            call = pairs[start : start + spec.images_per_call]
            with captured_latents(pipe) as captured:
                edits = edit_together(pipe, [self._request(spec, index, seed) for index, seed in call])
            images = put_images([edit.images[0] for edit in edits])
            for position, ((index, seed), edit, image) in enumerate(zip(call, edits, images, strict=True)):
                result = results[index]
                result.outputs.append(Output(item=result.item.id, seed=seed, image=image, step_kinds=edit.step_kinds))
                if captured:
                    result.latents[seed] = captured[0][position]
        return list(results.values())

    def _request(self, spec: ArmSpec, index: int, seed: int) -> EditRequest:
        item = spec.items[index]
        instruction = spec.instructions[index] if spec.instructions else item.instruction
        return EditRequest(
            instruction,
            item.image,
            steps=spec.steps,
            guidance=self._guidance,
            seed=seed,
            negative=spec.negatives[index] if spec.negatives else None,
            true_cfg=TRUE_CFG if spec.negatives else 1.0,
        )

    def time_edits(self, spec: ArmSpec) -> tuple[float, ...]:
        """Seconds of single edits of `spec`, one after another, after a few that are not counted.

        Raises what `edit` raises.
        """
        from kontext_fast.pipeline.edit import edit

        times = []
        with self._pipeline.prepared(spec) as pipe:
            for count in range(WARM_UP_EDITS + TIMED_EDITS):
                index = max(0, count - WARM_UP_EDITS) % len(spec.items)
                request = self._request(spec, index, self._seeds[0])
                self._pipeline.synchronize()
                start = perf_counter()
                edit(pipe, request)
                self._pipeline.synchronize()
                times.append(perf_counter() - start)
        return tuple(times[WARM_UP_EDITS:])


def _sentence(error: Exception) -> str:
    """What a record says of a failed edit."""
    reason = str(error) if isinstance(error, KontextError) else f"{type(error).__name__}: {error}"
    return " ".join(redact(reason).split())
