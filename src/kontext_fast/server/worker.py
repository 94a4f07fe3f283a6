"""What a worker does, wherever it runs: loads a checkpoint once, and runs jobs one after another.

Each image of a job is an edit of its own, through `pipeline.edit`, so that it is the same alone and under load. With
`batch` above 1 images of the same size and settings run together, which is the same within rounding.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from kontext_fast.errors import Cancelled, InvalidInput, OutOfMemory, Refused
from kontext_fast.server.protocol import (
    Idle,
    JobDone,
    JobError,
    JobMessage,
    JobPreview,
    JobStep,
    PresetMessage,
    Ready,
    Report,
    Setup,
    Timing,
    pixels,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from kontext_fast.optimizations.presets import Plan
    from kontext_fast.pipeline.edit import EditRequest, EditResult

Send = Callable[[Report, tuple[bytes, ...]], None]

_WARM_UP_INSTRUCTION = "make the background red"


@dataclass
class _RunningJob:
    """A job and what has been made for it."""

    message: JobMessage
    picture: Image | None
    is_cancelled: Callable[[str], bool]
    results: list[EditResult] = field(default_factory=list)
    steps_done: int = 0
    preview_s: float = 0.0
    failed: bool = False

    @property
    def ended(self) -> bool:
        return self.failed or self.is_cancelled(self.message.id)

    def request(self, index: int) -> EditRequest:
        """The request of its image with number `index`."""
        from kontext_fast.pipeline.edit import EditRequest

        message = self.message
        return EditRequest(
            message.instruction,
            self.picture,
            steps=message.steps,
            guidance=message.guidance,
            seed=message.seed + index,
            negative=message.negative,
            true_cfg=message.true_cfg,
            size=message.size,
        )


_Image = tuple[_RunningJob, int]
"""A job and the number of one of its images."""


class ImageWorker:
    """One pipeline with its presets and LoRAs. One call at a time."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._pipe: Any = None
        self._plans: Sequence[Plan] = ()
        self._switch: Any = None
        self._device: Any = None
        self._lora: str | None = None
        self._undo_lora = ExitStack()

    def load(self) -> Ready:
        """Load, accelerate and warm up; raises what loading and plans raise."""
        from kontext_fast.bench.environment import environment_facts
        from kontext_fast.optimizations.presets import resolve_for
        from kontext_fast.pipeline.device import Machine, choose_device
        from kontext_fast.pipeline.edit import text_length
        from kontext_fast.pipeline.load import load

        setup = self._setup
        if setup.threads is not None:
            _limit_threads(setup.threads)
        start = time.perf_counter()
        self._device = choose_device(setup.device)
        machine = Machine.detect(self._device)
        plans = [resolve_for(setup.checkpoint, preset, machine) for preset in setup.presets]
        loaded = load(setup.checkpoint, device=self._device, in_host_memory=plans[0].in_host_memory)
        self._pipe, self._plans = loaded.pipe, plans
        swap_s = self._try_loras()
        load_s = time.perf_counter() - start
        return Ready(
            checkpoint=loaded.facts,
            native=self._pipe.vae.config.sample_size,
            text_tokens=text_length(self._pipe),
            presets=tuple(_preset_message(plan) for plan in plans),
            environment=environment_facts(str(self._device)),
            timings=tuple(self._warm_up()),
            load_s=load_s,
            swap_s=swap_s,
        )

    def run(
        self,
        messages: Sequence[JobMessage],
        pictures: Sequence[Image | None],
        send: Send,
        is_cancelled: Callable[[str], bool],
    ) -> None:
        """Run jobs of one preset, LoRA, size and settings, and report each job's outcome to `send`.

        Raises OutOfMemory and unexpected errors after reporting them: the worker should then be replaced.
        """
        start = time.perf_counter()
        jobs = [
            _RunningJob(message, picture, is_cancelled) for message, picture in zip(messages, pictures, strict=True)
        ]
        swap_s = self._hold(messages[0].lora)
        self._switch.select(messages[0].preset)
        images = [(job, index) for job in jobs for index in range(job.message.images)]
        for batch in _in_batches(images, self._setup.batch):
            self._run_batch([(job, index) for job, index in batch if not job.ended], send)
        for job in jobs:
            if job.failed:
                continue
            if is_cancelled(job.message.id):
                send(JobError(job=job.message.id, reason="cancelled", message="The request was cancelled."), ())
            else:
                send(*_done(job, time.perf_counter() - start, swap_s))

    def idle(self) -> Idle:
        """The memory that the worker holds now."""
        import psutil

        memory = None
        if self._device.type == "cuda":
            import torch

            memory = int(torch.cuda.memory_reserved(self._device))
        return Idle(device_memory_bytes=memory, host_memory_bytes=psutil.Process().memory_info().rss)

    def _run_batch(self, batch: Sequence[_Image], send: Send) -> None:
        if not batch:
            return
        try:
            self._edit(batch, send)
        except Cancelled:
            # Every job of the batch was cancelled, which `run` reports.
            pass
        except InvalidInput as error:
            if len(batch) > 1:
                # One of them is to blame, and the others have a right to their images.
                for image in batch:
                    self._run_batch([image], send)
                return
            _fail(batch, JobError(job="", reason="input", message=str(error)), send)
        except OutOfMemory as error:
            _fail(batch, JobError(job="", reason="out of memory", message=str(error)), send)
            raise
        except Refused as error:
            _fail(batch, JobError(job="", reason="refused", message=str(error)), send)
        except Exception:
            _fail(batch, JobError(job="", reason="internal", message="The edit failed."), send)
            raise

    def _edit(self, batch: Sequence[_Image], send: Send) -> None:
        from kontext_fast.pipeline.edit import edit_together, plan_for
        from kontext_fast.pipeline.previews import watch_previews

        requests = [job.request(index) for job, index in batch]
        first, previews = requests[0], batch[0][0].message.previews

        def on_step(_done: int, total: int) -> None:
            for job, _ in batch:
                job.steps_done += 1
                send(JobStep(job=job.message.id, done=job.steps_done, total=total * job.message.images), ())

        def show(number: int, pictures: tuple[Image, ...]) -> None:
            for (job, index), picture in zip(batch, pictures, strict=True):
                message = JobPreview(job=job.message.id, image=index, index=number, size=picture.size)
                send(message, (pixels(picture),))

        def should_stop() -> bool:
            return all(job.ended for job, _ in batch)

        size = plan_for(self._pipe, first.image.size if first.image else None, first.size).size
        with watch_previews(self._pipe, size, previews, show) as spent:
            results = edit_together(self._pipe, requests, on_step=on_step, should_stop=should_stop)
        for (job, _), result in zip(batch, results, strict=True):
            job.results.append(result)
            job.preview_s += spent.seconds / len(batch)

    def _accelerate(self) -> None:
        from kontext_fast.optimizations.switching import SwitchablePlans

        self._switch = SwitchablePlans(self._plans, self._pipe, self._device)

    def _hold(self, lora: str | None) -> float:
        """Have the next calls run with `lora`; seconds that exchanging it took, 0 where it is held already.

        A LoRA is merged into the weights that presets rewrite, so the presets are taken off and applied again.
        """
        if lora == self._lora:
            return 0.0
        start = time.perf_counter()
        self._switch.revert()
        self._merge(lora)
        self._accelerate()
        return time.perf_counter() - start

    def _merge(self, name: str | None) -> None:
        from kontext_fast.pipeline.lora import load_lora

        self._undo_lora.close()
        self._lora = None
        if name is not None:
            file = next(lora for lora in self._setup.loras if lora.name == name)
            self._undo_lora.enter_context(load_lora(self._pipe, file.path, file.strength))
        self._lora = name

    def _try_loras(self) -> float | None:
        """Accelerate, with each LoRA merged once, so that one that does not fit is refused at the start.

        Returns the seconds of an exchange, None without LoRAs. Raises InvalidInput.
        """
        for lora in self._setup.loras:
            self._merge(lora.name)
        self._accelerate()
        return self._hold(None) if self._setup.loras else None

    def _warm_up(self) -> Iterator[Timing]:
        """Run every preset at the native size, twice: a first call compiles, the second one tells the time."""
        from PIL import Image as pil

        from kontext_fast.pipeline.edit import EditRequest, edit

        setup, side = self._setup, self._pipe.vae.config.sample_size
        picture = pil.new("RGB", (side, side), "gray")
        request = EditRequest(_WARM_UP_INSTRUCTION, picture, steps=setup.steps, guidance=setup.guidance, seed=0)
        for preset in setup.presets:
            self._switch.select(preset)
            edit(self._pipe, request)
            start = time.perf_counter()
            edit(self._pipe, request)
            yield Timing(preset=preset, steps=setup.steps, seconds=time.perf_counter() - start)


def _in_batches(images: Sequence[_Image], size: int) -> Iterator[list[_Image]]:
    remaining = iter(images)
    while batch := list(islice(remaining, size)):
        yield batch


def _done(job: _RunningJob, run_s: float, swap_s: float) -> tuple[JobDone, tuple[bytes, ...]]:
    from kontext_fast.pipeline.edit import joint_kind

    pictures = [picture for result in job.results for picture in result.images]
    kinds = zip(*(result.step_kinds for result in job.results), strict=True)
    message = JobDone(
        job=job.message.id,
        size=pictures[0].size,
        run_s=run_s,
        preview_s=job.preview_s,
        swap_s=swap_s,
        step_kinds=tuple(map(joint_kind, kinds)),
        cautions=tuple(dict.fromkeys(caution for result in job.results for caution in result.cautions)),
    )
    return message, tuple(map(pixels, pictures))


def _fail(batch: Sequence[_Image], error: JobError, send: Send) -> None:
    for job, _ in batch:
        if not job.failed:
            job.failed = True
            send(error.model_copy(update={"job": job.message.id}), ())


def _preset_message(plan: Any) -> PresetMessage:
    from kontext_fast.optimizations.presets import find_preset

    lossy = any(applied.effect == "lossy" for applied in plan.applied)
    return PresetMessage(
        name=plan.preset,
        summary=find_preset(plan.preset).summary,
        labels=plan.labels,
        lossy=lossy,
        optimizations=plan.applied,
    )


def _limit_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
