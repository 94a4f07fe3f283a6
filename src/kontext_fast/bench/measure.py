"""Measures a loaded, accelerated pipeline: first call, warm-up, then the calls that count.

Every preset gets the same items with the same seeds, so that outputs and times can be compared in pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from kontext_fast.bench.memory import PeakMemory
from kontext_fast.bench.protocol import Progress
from kontext_fast.bench.suites import NATIVE, Suite
from kontext_fast.bench.timing import StageClock
from kontext_fast.items.shapes import ShapesItem, held_out
from kontext_fast.pipeline.edit import EditRequest, EditResult, edit, plan_for
from kontext_fast.pipeline.sizes import SizePlan, parse_size
from kontext_fast.records.schema import Item, Measurement, Sample, Workload
from kontext_fast.records.store import ResultStore

OnProgress = Callable[[Progress], None]


class Bench:
    """All workloads of a suite on one pipeline."""

    def __init__(self, pipe: Any, suite: Suite, *, store: ResultStore | None) -> None:
        """Images go to `store`; None keeps none."""
        self._pipe = pipe
        self._device = pipe._execution_device
        self._suite = suite
        self._store = store
        self._items = held_out(suite.items, suite.seed)
        self._called = False

    def measure_all(self, *, on_progress: OnProgress) -> Iterator[tuple[Measurement, tuple[Item, ...]]]:
        """One measurement per size and step count, and the items that it used. Raises what `edit` raises."""
        for size in self._suite.sizes:
            for steps in self._suite.steps:
                yield self._measure(size, steps, on_progress)

    def _measure(self, size: str, steps: int, on_progress: OnProgress) -> tuple[Measurement, tuple[Item, ...]]:
        side = self._pipe.vae.config.sample_size if size == NATIVE else max(parse_size(size))
        images = [item.render(side) for item in self._items]
        requests = [
            EditRequest(
                item.instruction,
                image,
                steps=steps,
                guidance=self._suite.guidance,
                seed=self._suite.seed + index,
                size=None if size == NATIVE else parse_size(size),
            )
            for index, (item, image) in enumerate(zip(self._items, images, strict=True))
        ]
        plan = plan_for(self._pipe, images[0].size, requests[0].size)
        first_call_s, warmup = self._warm_up(requests[0], on_progress)
        measured = self._sample(requests, on_progress)
        stored = tuple(
            Item(
                id=item.id,
                instruction=item.instruction,
                image=self._store.put_image(image) if self._store else None,
                kind=item.kind,
                open=item.open,
            )
            for item, image in zip(self._items, images, strict=True)
        )
        workload = _workload(plan, requests, self._items)
        return Measurement(workload=workload, first_call_s=first_call_s, samples=(*warmup, *measured)), stored

    def _warm_up(self, request: EditRequest, on_progress: OnProgress) -> tuple[float | None, list[Sample]]:
        """Call until two calls in a row take the same time, on one item, so that data cannot look like drift.

        Returns the time of the process's first call, None for a later workload, and all calls as samples.
        """
        first_call_s = None
        samples: list[Sample] = []
        for call in range(1 + self._suite.max_warmup):
            progress = Progress(
                phase="warm-up" if self._called else "first call",
                call=max(1, call),
                calls=max(1, self._suite.max_warmup),
                steps=request.steps,
            )
            sample, _ = self._call(request, self._items[0], warmup=True, progress=progress, on_progress=on_progress)
            if not self._called:
                self._called, first_call_s = True, sample.wall_s
            samples.append(sample)
            if len(samples) > 1 and _alike(samples[-2], samples[-1], self._suite.stable_within):
                break
        return first_call_s, samples

    def _sample(self, requests: list[EditRequest], on_progress: OnProgress) -> list[Sample]:
        samples = []
        for call in range(self._suite.calls):
            index = call % len(requests)
            request, item = requests[index], self._items[index]
            on_progress(Progress(phase="measuring", call=call + 1, calls=self._suite.calls, steps=request.steps))
            sample, result = self._call(request, item, warmup=False)
            if self._store and call < len(requests):
                hashes = tuple(self._store.put_image(image) for image in result.images)
                sample = sample.model_copy(update={"images": hashes})
            samples.append(sample)
        return samples

    def _call(
        self,
        request: EditRequest,
        item: ShapesItem,
        *,
        warmup: bool,
        progress: Progress | None = None,
        on_progress: OnProgress | None = None,
    ) -> tuple[Sample, EditResult]:
        """One timed call. Steps are reported in warm-up only: a measured call does nothing but the edit."""

        def report(done: int, _total: int) -> None:
            if progress is not None and on_progress is not None:
                on_progress(progress.model_copy(update={"step": done}))

        on_step = report if progress is not None else None
        if on_step is not None:
            on_step(0, request.steps)
        self._synchronize()
        memory = PeakMemory(self._device)
        with StageClock(self._pipe) as clock:
            start = perf_counter()
            result = edit(self._pipe, request, on_step=on_step)
            self._synchronize()
            wall_s = perf_counter() - start
        times = clock.times()
        return Sample(
            item=item.id,
            seed=result.seeds[0],
            warmup=warmup,
            wall_s=wall_s,
            stages_s=times.stages_s,
            steps_s=times.steps_s,
            step_kinds=result.step_kinds,
            memory=memory.read(),
            images=(),
        ), result

    def _synchronize(self) -> None:
        import torch

        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _alike(one: Sample, other: Sample, fraction: float) -> bool:
    return abs(one.wall_s - other.wall_s) < fraction * other.wall_s


def _workload(plan: SizePlan, requests: list[EditRequest], items: list[ShapesItem]) -> Workload:
    return Workload(
        mode="edit",
        width=plan.width,
        height=plan.height,
        reference_width=plan.reference_width,
        reference_height=plan.reference_height,
        text_tokens=plan.text_tokens,
        image_tokens=plan.image_tokens,
        reference_tokens=plan.reference_tokens,
        steps=requests[0].steps,
        guidance=requests[0].guidance,
        true_cfg=requests[0].true_cfg,
        batch=requests[0].batch,
        items=tuple(item.id for item in items),
        seeds=tuple(seed for request in requests for seed in request.seeds()),
    )
