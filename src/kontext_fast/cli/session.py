"""A pipeline set up as the options say, which makes one image after the other, and saves it and reads the next inputs
meanwhile.

What is done is skipped, and a broken input does not stop the rest.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kontext_fast.cli.options import lora_names, parse_lora
from kontext_fast.cli.output import Bar, Outcome, print_json, progress_bar, say
from kontext_fast.errors import Cancelled, InvalidInput, KontextError

if TYPE_CHECKING:
    from kontext_fast.pipeline.edit import EditRequest, EditResult
    from kontext_fast.pipeline.images import ImageFile
    from kontext_fast.pipeline.load import LoadedCheckpoint


_NOT_ASKED_FOR = frozenset({"software", "version", "checkpoint"})


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Options that decide the pipeline."""

    checkpoint: str
    preset: str
    lora: tuple[str, ...]
    """Each as it was typed, PATH[:STRENGTH]."""
    device: str | None
    gpus: int = 1
    """That make each image together. No image says so: it is that of one GPU within rounding."""

    @property
    def lora_names(self) -> tuple[str, ...]:
        """As records call them."""
        return lora_names(self.lora)


def setup_for_pictures(
    checkpoint: str | None, preset: str, lora: Sequence[str], device: str | None, *, elsewhere: bool = False
) -> Setup:
    """How a user's own pictures are edited; `elsewhere`: on other machines, which have GPUs.

    Raises InvalidInput, CheckpointUnavailable or Refused.
    """
    from kontext_fast.optimizations.presets import find_preset
    from kontext_fast.pipeline.device import choose_device
    from kontext_fast.pipeline.hub import checkpoint_for_pictures
    from kontext_fast.pipeline.load import KONTEXT_DEV

    # What is wrong anywhere is said before what is missing here.
    find_preset(preset)
    for text in lora:
        parse_lora(text)
    if elsewhere:
        return Setup(checkpoint=checkpoint or KONTEXT_DEV, preset=preset, lora=tuple(lora), device=device)
    choose_device(device)
    chosen = checkpoint or checkpoint_for_pictures(device)
    return Setup(checkpoint=chosen, preset=preset, lora=tuple(lora), device=device)


class Session:
    """A loaded and accelerated pipeline that edits one request after another."""

    def __init__(
        self, loaded: LoadedCheckpoint, setup: Setup, load_s: float, bar: Bar, unused: Sequence[str] = ()
    ) -> None:
        self._loaded = loaded
        self._unused = unused
        self.setup = setup
        self._load_s = load_s
        self.bar = bar
        self.saves = True
        """Not where another process saves what all of them make together."""

    def edit(self, request: EditRequest, *, name: str, place: str = "") -> EditResult:
        """Run `request`; the bar says `place` and `name`."""
        from kontext_fast.pipeline.edit import edit

        self.bar.begin("  ".join(filter(None, (place, name))), request.steps)
        return edit(self._loaded.pipe, request, on_step=self.bar.step)

    def save(self, job: ImageJob, result: EditResult, before_save: OnMade | None = None) -> dict[str, Any]:
        """Write the image of `job` and return the facts for `--json`, which `before_save` gets first."""
        from kontext_fast.pipeline.images import Origin

        name = self._loaded.facts.name
        facts = {
            "input": None if job.source is None else str(job.source),
            "path": str(job.file.path),
            "seed": result.seeds[0],
            "seconds": result.seconds,
            "size": asdict(result.size),
            "step_kinds": list(result.step_kinds),
            "cautions": list(result.cautions),
        }
        if before_save is not None:
            before_save(job, {**facts, "checkpoint": name})
        origin = Origin.of(
            job.asked, seed=result.seeds[0], preset=self.setup.preset, checkpoint=name, lora=self.setup.lora_names
        )
        if self.saves:
            job.file.save(result.image, origin)
        return facts

    def notes(self) -> list[str]:
        """What of LoRAs and files is not used."""
        return [f"Note: {sentence}." for sentence in self._unused]

    def report(self) -> SessionReport:
        """What is the same for every image."""
        from kontext_fast.optimizations import DEFAULT_PRESET
        from kontext_fast.optimizations.presets import faster_presets

        remarks = [f"Made with checkpoint {self._loaded.facts.name}, preset {self.setup.preset}.", *self.notes()]
        if self.setup.preset == DEFAULT_PRESET:
            remarks.append(faster_presets())
        together = {} if self.setup.gpus == 1 else {"gpus": self.setup.gpus}
        if together:
            remarks.append(f"Each image was made by {self.setup.gpus} GPUs together.")
        facts = {
            "checkpoint": self._loaded.facts.model_dump(),
            "preset": self.setup.preset,
            "lora": list(self.setup.lora),
            "device": str(self._loaded.pipe._execution_device),
            "load_seconds": self._load_s,
            **together,
        }
        return SessionReport(facts, remarks)


@dataclass(frozen=True)
class SessionReport:
    """What is the same for every image of a session."""

    facts: dict[str, Any]
    """For `--json`."""
    remarks: list[str]
    """What a person should know of the images: what they were made with, and what would be faster."""


@contextmanager
def open_session(setup: Setup) -> Iterator[Session]:
    """Load and accelerate the pipeline. Everything that can be refused is refused before anything is loaded."""
    from kontext_fast.optimizations.acceleration import apply_plan
    from kontext_fast.optimizations.presets import find_preset, resolve_for
    from kontext_fast.pipeline.device import Machine, choose_device
    from kontext_fast.pipeline.load import load
    from kontext_fast.pipeline.lora import load_lora

    device = choose_device(setup.device)
    preset = find_preset(setup.preset)
    if setup.gpus > 1:
        preset = preset.replace(gpus=setup.gpus)
    plan = resolve_for(setup.checkpoint, preset, Machine.detect(device))
    with progress_bar() as bar, ExitStack() as stack:
        bar.begin(f"loading {setup.checkpoint}")
        begin = time.perf_counter()
        loaded = load(setup.checkpoint, device=device, in_host_memory=plan.in_host_memory)
        unused = list(loaded.unused)
        for text in setup.lora:
            unused.extend(stack.enter_context(load_lora(loaded.pipe, *parse_lora(text))))
        if plan.optimizations:
            acceleration = apply_plan(plan, loaded.pipe, device)
            # Reverting copies up to 17 GB to the GPU, and the process ends next where nothing is taken off after it.
            if setup.lora or setup.gpus > 1:
                stack.enter_context(acceleration)
        yield Session(loaded, setup, time.perf_counter() - begin, bar, unused)


@dataclass(frozen=True)
class ImageJob:
    """One image to make."""

    source: Path | None
    """The input image; None for text-to-image."""
    file: ImageFile
    asked: EditRequest
    """With its image where that has been opened."""
    row: int | None = None
    """Its number in a manifest, from 1."""
    joined: tuple[Path, ...] = ()
    """Input images that are joined to the first one."""

    @property
    def name(self) -> str:
        """What messages call it: its input, or its row of a manifest."""
        return str(self.source or self.file.path) if self.row is None else f"row {self.row}"

    def request(self) -> EditRequest:
        """What is to be run. Raises InvalidInput where the input image cannot be read."""
        if self.source is None or self.asked.image is not None:
            return self.asked
        return replace(self.asked, image=self.source)


def require_count(images: int) -> None:
    """Raise InvalidInput unless `images` can be made of each input."""
    if images < 1:
        raise InvalidInput(f"The number of images is {images}; give a whole number of at least 1.")


def numbered(path: Path, number: int) -> Path:
    """`a.edited.png` as `a.edited.2.png`."""
    return path.with_name(f"{path.stem}.{number}{path.suffix}")


def unfinished(
    jobs: Sequence[ImageJob], setup: Setup, *, overwrite: bool
) -> tuple[list[ImageJob], list[tuple[ImageJob, str]]]:
    """Those of `jobs` whose file is not there yet, or older than its input; and those whose file is there and was made
    otherwise, with how. With `overwrite` all are to be made.
    """
    left, conflicts = [], []
    for job in jobs:
        if overwrite or not job.file.path.exists():
            left.append(job)
        elif (difference := _difference(job, setup)) is not None:
            conflicts.append((job, difference))
        elif job.source is not None and any(
            source.stat().st_mtime > job.file.path.stat().st_mtime for source in (job.source, *job.joined)
        ):
            left.append(job)
    return left, conflicts


def _difference(job: ImageJob, setup: Setup) -> str | None:
    """How the file of `job` was made otherwise than `job` asks for, or None."""
    from kontext_fast.pipeline.images import Origin, read_origin

    origin = read_origin(job.file.path)
    if origin.get("software") != "kontext-fast":
        return "was not made by kontext-fast"
    wanted = Origin.of(
        job.asked, seed=job.asked.seed, preset=setup.preset, checkpoint=setup.checkpoint, lora=setup.lora_names
    ).facts()
    if not _is_name_of(origin.get("checkpoint", ""), setup.checkpoint):
        return f"was made with the checkpoint {origin.get('checkpoint')}"
    for key in dict.fromkeys((*wanted, *origin)):
        if key in _NOT_ASKED_FOR or (key == "seed" and job.asked.seed is None):
            continue
        if wanted.get(key) != origin.get(key):
            return f"was made with {key} {origin[key]!r}" if key in origin else f"was made without {key}"
    return None


def _is_name_of(recorded: str, checkpoint: str) -> bool:
    """Whether records call `checkpoint` so: a path by its last one or two parts."""
    path = Path(checkpoint).expanduser()
    return recorded == checkpoint or (path.exists() and str(path.resolve()).endswith(f"/{recorded}"))


OnMade = Callable[["ImageJob", dict[str, Any]], None]
"""Called with a job and the facts of its image."""
OnDone = Callable[["ImageJob", "dict[str, Any] | KontextError"], None]
"""Called with a job, and the facts of its image or why there is none."""

_READERS = 2
"""Inputs that are decoded while an edit runs: one may take longer than a fast edit."""
_UNSAVED = 4
"""Images that may wait to be written, which keeps a slow disk from filling the memory."""


def do_jobs(session: Session, jobs: Iterable[ImageJob], on_done: OnDone, before_save: OnMade | None = None) -> None:
    """Make and save the image of each job; inputs are read ahead, and images written behind, in other threads.

    Both functions are called from the thread that writes, in the order of `jobs`, which are taken as they are needed. A
    job that cannot be done stops no other. Raises Cancelled, and what no job is to blame for.
    """
    waiting, total = iter(jobs), len(jobs) if isinstance(jobs, Sequence) else 0
    with ThreadPoolExecutor(_READERS) as readers, ThreadPoolExecutor(1) as writer:
        reading = deque((job, readers.submit(job.request)) for job in islice(waiting, _READERS + 1))
        writing: deque[Future[None]] = deque()

        def finish(job: ImageJob, result: EditResult | KontextError) -> None:
            outcome: dict[str, Any] | KontextError
            try:
                outcome = result if isinstance(result, KontextError) else session.save(job, result, before_save)
            except InvalidInput as error:
                outcome = error
            on_done(job, outcome)

        number = 0
        while reading:
            job, request = reading.popleft()
            number += 1
            place = f"{number} of {total}" if total > 1 else ""
            result: EditResult | KontextError
            try:
                result = session.edit(request.result(), name=job.file.path.name, place=place)
            except Cancelled:
                raise
            except KontextError as error:
                result = error
            reading.extend((later, readers.submit(later.request)) for later in islice(waiting, 1))
            writing.append(writer.submit(finish, job, result))
            if len(writing) > _UNSAVED:
                writing.popleft().result()
        for written in writing:
            written.result()


OnAllDone = Callable[[SessionReport], None]

Maker = Callable[[Setup, Sequence[ImageJob], Outcome, OnAllDone], None]
"""Makes the images of jobs, adds each outcome, and reports at the end what is the same for all."""


def make_here(setup: Setup, jobs: Sequence[ImageJob], outcome: Outcome, then: OnAllDone) -> None:
    """A `Maker` with one pipeline, on the device of `setup`."""
    with open_session(setup) as session:
        with outcome.interruptible():
            do_jobs(session, jobs, outcome.printer(setup.preset, session.bar))
        with session.bar.hidden():
            then(session.report())


def make_images(
    jobs: Sequence[ImageJob],
    setup: Setup,
    *,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
    make: Maker = make_here,
) -> None:
    """Do what is left of `jobs` with `make` and report it, as every command that makes images does.

    Raises InvalidInput where a file is there that was made otherwise, and at the end where some could not be made.
    """
    left, conflicts = unfinished(jobs, setup, overwrite=overwrite)
    if conflicts:
        more = f" and {len(conflicts) - 1} more" if len(conflicts) > 1 else ""
        path, difference = conflicts[0][0].file.path, conflicts[0][1]
        raise InvalidInput(
            f"{path}{more} is there already and {difference}: add --overwrite, or give -o another place."
        )
    to_do = {id(job) for job in left}
    skipped = [str(job.file.path) for job in jobs if id(job) not in to_do]
    if not left:
        if as_json:
            print_json({"images": [], "failed": [], "skipped": skipped})
        elif quiet:
            print("\n".join(skipped))
        else:
            done = f"{skipped[0]} is" if len(skipped) == 1 else f"All {len(skipped)} images are"
            say(f"{done} there already, made in the same way; --overwrite makes them again.")
        return
    if not (quiet or as_json):
        say_how_loras_are_run(setup, left[0].asked.steps)
    outcome = Outcome(len(left), quiet=quiet, as_json=as_json)

    def report(session: SessionReport) -> None:
        if len(left) == 1:
            outcome.raise_failures()
        if as_json:
            print_json({"images": outcome.images, **session.facts, "failed": outcome.failed, "skipped": skipped})
        elif not quiet:
            outcome.say_summary(skipped, session.remarks)

    make(setup, left, outcome, report)
    outcome.raise_failures()


def say_how_loras_are_run(setup: Setup, steps: int) -> None:
    """A remark for each LoRA that wants other steps or another strength."""
    from kontext_fast.pipeline.lora import distilled_hint

    for path, strength in map(parse_lora, setup.lora):
        if (hint := distilled_hint(path, strength, steps)) is not None:
            say(f"Note: {hint}")
