"""Measures the cells of a suite on one pipeline: warm-up, timed calls, memory, compiled graphs and the GPU's state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from kontext_fast.bench.nvml import GpuMonitor, NvmlDevice
from kontext_fast.bench.protocol import Progress
from kontext_fast.bench.suites import Suite
from kontext_fast.bench.timing import StageClock
from kontext_fast.bench.workloads import Task, tasks, workload
from kontext_fast.datasets.base import Dataset
from kontext_fast.optimizations.techniques.compile import graphs_compiled
from kontext_fast.pipeline.edit import OF_FIRST_PROCESS, EditResult, edit
from kontext_fast.records.schema import Cell, Measurement, Memory, Sample, StoredItem
from kontext_fast.records.store import ResultStore

_PROCESS = Path("/proc/self")

OnProgress = Callable[[Progress], None]


class PeakMemory:
    """Resets the peaks when it is created, so create it right before the call, on a synchronized device."""

    def __init__(self, device: Any) -> None:
        import torch

        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._host_resets = _reset_host_peak()

    def read(self, *, device_process_peak_bytes: int | None) -> Memory:
        """Peaks in bytes since this object was created; None for a peak that this machine does not count per call.

        The driver counts no peak, so the maximum of a monitor's readings is passed in.
        """
        import torch

        on_gpu = self._device.type == "cuda"
        return Memory(
            allocated_peak_bytes=torch.cuda.max_memory_allocated(self._device) if on_gpu else None,
            reserved_peak_bytes=torch.cuda.max_memory_reserved(self._device) if on_gpu else None,
            device_process_peak_bytes=device_process_peak_bytes,
            host_rss_peak_bytes=_host_peak() if self._host_resets else None,
        )


def _reset_host_peak() -> bool:
    """Whether the peak could be reset, which only Linux allows; elsewhere it is a peak of the whole process."""
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _host_peak() -> int | None:
    for line in (_PROCESS / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


class Bench:
    """Measures any number of cells of a suite on one pipeline."""

    def __init__(self, pipe: Any, suite: Suite, *, store: ResultStore | None, dataset: Dataset | None = None) -> None:
        """Images of edits are kept in `store`, if there is one; `dataset` are items of the user's."""
        self._dataset = dataset
        self._pipe = pipe
        self._device = pipe._execution_device
        self._card = NvmlDevice.of(self._device)
        self._suite = suite
        self._store = store
        self._called = False

    def measure_all(
        self, cells: Sequence[Cell], *, on_progress: OnProgress
    ) -> Iterator[tuple[Measurement, tuple[StoredItem, ...]]]:
        """One measurement per cell, and the items that it used. Raises what `edit` raises."""
        for cell in cells:
            yield self._measure(cell, on_progress)

    def _measure(self, cell: Cell, on_progress: OnProgress) -> tuple[Measurement, tuple[StoredItem, ...]]:
        cell_tasks = tasks(self._pipe, cell, self._suite, self._dataset)
        planned = workload(self._pipe, cell, cell_tasks)
        first_call_s, warmup = self._warm_up(cell_tasks[0], on_progress)
        measured = self._sample(cell_tasks, on_progress)
        # A fitted solver runs fewer steps than a request asks for.
        planned = planned.model_copy(update={"steps": len(measured[0].step_kinds)})
        measurement = Measurement(workload=planned, first_call_s=first_call_s, samples=(*warmup, *measured), cell=cell)
        return measurement, tuple(self._stored(task) for task in cell_tasks)

    def _stored(self, task: Task) -> StoredItem:
        if self._store is None or task.request.image is None:
            return task.item
        return task.item.model_copy(update={"image": self._store.put_image(task.request.image)})

    def _warm_up(self, task: Task, on_progress: OnProgress) -> tuple[float | None, list[Sample]]:
        """Call until two consecutive calls take the same time, on one item, so that data cannot look like drift.

        Returns the time of the process's first call (None for a later workload) and all calls as samples.
        """
        first_call_s = None
        samples: list[Sample] = []
        for call in range(1 + self._suite.max_warmup):
            progress = Progress(
                phase="warm-up" if self._called else "first call",
                call=max(1, call),
                calls=max(1, self._suite.max_warmup),
                steps=task.request.steps,
            )
            sample, _ = self._call(task, warmup=True, progress=progress, on_progress=on_progress)
            if not self._called:
                self._called, first_call_s = True, sample.wall_s
            samples.append(sample)
            if len(samples) > 1 and self._decided(_alike(samples[-2], samples[-1], self._suite.stable_within)):
                break
        return first_call_s, samples

    def _decided(self, here: bool) -> bool:
        """`here`, or what the first of the processes says that make every call together."""
        first: Callable[[bool], bool] = getattr(self._pipe, OF_FIRST_PROCESS, bool)
        return first(here)

    def _sample(self, cell_tasks: list[Task], on_progress: OnProgress) -> list[Sample]:
        samples = []
        for call in range(self._suite.calls):
            task = cell_tasks[call % len(cell_tasks)]
            on_progress(Progress(phase="measuring", call=call + 1, calls=self._suite.calls, steps=task.request.steps))
            sample, result = self._call(task, warmup=False)
            # Images from text alone have no judge.
            if self._store and task.request.image is not None and call < len(cell_tasks):
                hashes = tuple(self._store.put_image(image) for image in result.images)
                sample = sample.model_copy(update={"images": hashes})
            samples.append(sample)
        return samples

    def _call(
        self,
        task: Task,
        *,
        warmup: bool,
        progress: Progress | None = None,
        on_progress: OnProgress | None = None,
    ) -> tuple[Sample, EditResult]:
        """One timed call. Steps are reported in warm-up only: a measured call does nothing except the edit."""

        def report(done: int, _total: int) -> None:
            if progress is not None and on_progress is not None:
                on_progress(progress.model_copy(update={"step": done}))

        on_step = report if progress is not None else None
        if on_step is not None:
            on_step(0, task.request.steps)
        self._synchronize()
        compiled_before = graphs_compiled()
        memory = PeakMemory(self._device)
        with GpuMonitor(self._card) as monitor, StageClock(self._pipe, self._device) as clock:
            start = perf_counter()
            result = edit(self._pipe, task.request, on_step=on_step)
            self._synchronize()
            wall_s = perf_counter() - start
        times = clock.times()
        return Sample(
            item=task.item.id,
            seed=result.seeds[0],
            warmup=warmup,
            wall_s=wall_s,
            stages_s=times.stages_s,
            steps_s=times.steps_s,
            step_kinds=result.step_kinds,
            memory=memory.read(device_process_peak_bytes=monitor.process_peak_bytes),
            images=(),
            graphs_compiled=graphs_compiled() - compiled_before,
            gpu=monitor.readings,
        ), result

    def _synchronize(self) -> None:
        import torch

        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _alike(before: Sample, after: Sample, fraction: float) -> bool:
    return abs(before.wall_s - after.wall_s) < fraction * after.wall_s
