"""A pipeline set up as the options say, which makes and saves one image after the other.

What is done is skipped, and a broken input does not stop the rest.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kontext_fast.cli.options import parse_lora
from kontext_fast.cli.output import Bar, print_json, progress_bar, say
from kontext_fast.errors import Cancelled, InvalidInput

if TYPE_CHECKING:
    from kontext_fast.pipeline.edit import EditRequest
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

    @property
    def lora_names(self) -> tuple[str, ...]:
        """File names with strengths, without the folders of this machine."""
        return tuple(f"{Path(path).name}:{strength:g}" for path, strength in map(parse_lora, self.lora))


def setup_for_pictures(checkpoint: str | None, preset: str, lora: Sequence[str], device: str | None) -> Setup:
    """How a user's own pictures are edited. Raises InvalidInput, CheckpointUnavailable or Refused."""
    from kontext_fast.optimizations.presets import find_preset
    from kontext_fast.pipeline.device import choose_device
    from kontext_fast.pipeline.hub import checkpoint_for_pictures

    # What is wrong anywhere is said before what is missing here.
    find_preset(preset)
    for text in lora:
        parse_lora(text)
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

    def save(
        self, request: EditRequest, output: ImageFile, *, source: Path | None = None, place: str = ""
    ) -> dict[str, Any]:
        """Run `request`, write its image to `output` and return the facts for `--json`; the bar begins with `place`."""
        from kontext_fast.pipeline.edit import edit
        from kontext_fast.pipeline.images import Origin

        self.bar.begin("  ".join(filter(None, (place, output.path.name))), request.steps)
        result = edit(self._loaded.pipe, request, on_step=self.bar.step)
        output.save(
            result.image,
            Origin.of(
                request,
                seed=result.seeds[0],
                preset=self.setup.preset,
                checkpoint=self._loaded.facts.name,
                lora=self.setup.lora_names,
            ),
        )
        return {
            "input": None if source is None else str(source),
            "path": str(output.path),
            "seed": result.seeds[0],
            "seconds": result.seconds,
            "size": asdict(result.size),
            "step_kinds": list(result.step_kinds),
            "cautions": list(result.cautions),
        }

    def remarks(self) -> list[str]:
        """What a person should know of the images: what they were made with, and what would be faster."""
        from kontext_fast.optimizations import DEFAULT_PRESET
        from kontext_fast.optimizations.presets import faster_presets

        remarks = [f"Made with checkpoint {self._loaded.facts.name}, preset {self.setup.preset}."]
        remarks.extend(f"Note: {sentence}." for sentence in self._unused)
        if self.setup.preset == DEFAULT_PRESET:
            remarks.append(faster_presets())
        return remarks

    def facts(self) -> dict[str, Any]:
        """What is the same for every image of the session."""
        return {
            "checkpoint": self._loaded.facts.model_dump(),
            "preset": self.setup.preset,
            "lora": list(self.setup.lora),
            "device": str(self._loaded.pipe._execution_device),
            "load_seconds": self._load_s,
        }


@contextmanager
def open_session(setup: Setup) -> Iterator[Session]:
    """Load and accelerate the pipeline. Everything that can be refused is refused before anything is loaded."""
    from kontext_fast.optimizations.acceleration import apply_plan
    from kontext_fast.optimizations.presets import resolve_for
    from kontext_fast.pipeline.device import Machine, choose_device
    from kontext_fast.pipeline.load import load
    from kontext_fast.pipeline.lora import load_lora

    device = choose_device(setup.device)
    plan = resolve_for(setup.checkpoint, setup.preset, Machine.detect(device))
    with progress_bar() as bar, ExitStack() as stack:
        bar.begin(f"loading {setup.checkpoint}")
        begin = time.perf_counter()
        loaded = load(setup.checkpoint, device=device, in_host_memory=plan.in_host_memory)
        unused = list(loaded.unused)
        for text in setup.lora:
            unused.extend(stack.enter_context(load_lora(loaded.pipe, *parse_lora(text))))
        if plan.optimizations:
            stack.enter_context(apply_plan(plan, loaded.pipe, device))
        yield Session(loaded, setup, time.perf_counter() - begin, bar, unused)


@dataclass(frozen=True)
class ImageJob:
    """One image to make."""

    source: Path | None
    """The input image; None for text-to-image."""
    file: ImageFile
    asked: EditRequest
    """With its image where that has been opened."""

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


def unfinished(jobs: Sequence[ImageJob], setup: Setup, *, overwrite: bool) -> list[ImageJob]:
    """Those of `jobs` whose file is not there yet, or older than its input.

    Raises InvalidInput where a file is there that was made otherwise, unless `overwrite`.
    """
    if overwrite:
        return list(jobs)
    left, conflicts = [], []
    for job in jobs:
        path = job.file.path
        if not path.exists():
            left.append(job)
        elif (difference := _difference(job, setup)) is not None:
            conflicts.append((path, difference))
        elif job.source is not None and job.source.stat().st_mtime > path.stat().st_mtime:
            left.append(job)
    if conflicts:
        path, difference = conflicts[0]
        more = f" and {len(conflicts) - 1} more" if len(conflicts) > 1 else ""
        raise InvalidInput(
            f"{path}{more} is there already and {difference}: add --overwrite, or give -o another place."
        )
    return left


def _difference(job: ImageJob, setup: Setup) -> str | None:
    """How the file of `job` was made otherwise than `job` asks for, or None."""
    from kontext_fast.pipeline.images import Origin, read_origin

    found = read_origin(job.file.path)
    if found.get("software") != "kontext-fast":
        return "was not made by kontext-fast"
    wanted = Origin.of(
        job.asked, seed=job.asked.seed, preset=setup.preset, checkpoint=setup.checkpoint, lora=setup.lora_names
    ).facts()
    if not _is_name_of(found.get("checkpoint", ""), setup.checkpoint):
        return f"was made with the checkpoint {found.get('checkpoint')}"
    for key in dict.fromkeys((*wanted, *found)):
        if key in _NOT_ASKED_FOR or (key == "seed" and job.asked.seed is None):
            continue
        if wanted.get(key) != found.get(key):
            return f"was made with {key} {found[key]!r}" if key in found else f"was made without {key}"
    return None


def _is_name_of(recorded: str, checkpoint: str) -> bool:
    """Whether records call `checkpoint` so: a path by its last one or two parts."""
    path = Path(checkpoint).expanduser()
    return recorded == checkpoint or (path.exists() and str(path.resolve()).endswith(f"/{recorded}"))


@dataclass(frozen=True)
class Outcome:
    """What became of some jobs: the facts of the images made, and why others were not."""

    images: list[dict[str, Any]]
    failed: list[dict[str, str]]


def run_jobs(session: Session, jobs: Sequence[ImageJob], *, quiet: bool, as_json: bool) -> Outcome:
    """Make and save the image of each job, with a line for each as soon as it is there.

    Of several, one that is no image is reported and left out. Raises what `edit` raises, InvalidInput for a single
    job, and Cancelled on Ctrl-C in the middle.
    """
    images: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    for number, job in enumerate(jobs, 1):
        place = f"{number} of {len(jobs)}" if len(jobs) > 1 else ""
        try:
            facts = session.save(job.request(), job.file, source=job.source, place=place)
        except InvalidInput as error:
            if len(jobs) == 1:
                raise
            failed.append({"input": str(job.source or job.file.path), "reason": str(error)})
            with session.bar.hidden():
                say("  ".join(filter(None, (place, str(error)))))
            continue
        except KeyboardInterrupt:
            if images:
                raise Cancelled(
                    f"Interrupted after {len(images)} of {len(jobs)} images; the same command goes on with the rest."
                ) from None
            raise
        images.append(facts)
        if not as_json:
            with session.bar.hidden():
                print(facts["path"] if quiet else "  ".join(filter(None, (place, _line(facts, session.setup.preset)))))
    return Outcome(images, failed)


def _line(facts: dict[str, Any], preset: str) -> str:
    """`cat.edited.png  1024x1024  2.34 s  (fast, 11 of 28 steps, seed 7)`."""
    kinds = facts["step_kinds"]
    computed = sum(kind == "full" for kind in kinds)
    every = f"{len(kinds)} steps" if len(kinds) != 1 else "1 step"
    steps = every if computed == len(kinds) else f"{computed} of {every}"
    size = f"{facts['size']['width']}x{facts['size']['height']}"
    return f"{facts['path']}  {size}  {facts['seconds']:.2f} s  ({preset}, {steps}, seed {facts['seed']})"


def make_images(jobs: Sequence[ImageJob], setup: Setup, *, overwrite: bool, quiet: bool, as_json: bool) -> None:
    """Do what is left of `jobs` and report it, as every command that makes images does.

    Raises InvalidInput at the end where some could not be made.
    """
    left = unfinished(jobs, setup, overwrite=overwrite)
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
    if setup.lora and not (quiet or as_json):
        _say_how_loras_are_run(setup, left[0].asked.steps)
    with open_session(setup) as session:
        begin = time.perf_counter()
        outcome = run_jobs(session, left, quiet=quiet, as_json=as_json)
        seconds = time.perf_counter() - begin
        with session.bar.hidden():
            if as_json:
                print_json({"images": outcome.images, **session.facts(), "failed": outcome.failed, "skipped": skipped})
            elif not quiet:
                _say_summary(session, outcome, skipped, seconds)
    if outcome.failed:
        raise InvalidInput(
            f"{len(outcome.failed)} of {len(left)} images were not made; give intact copies of their inputs."
        )


def _say_how_loras_are_run(setup: Setup, steps: int) -> None:
    from kontext_fast.pipeline.lora import distilled_hint

    for path, strength in map(parse_lora, setup.lora):
        if (hint := distilled_hint(path, strength, steps)) is not None:
            say(f"Note: {hint}")


def _say_summary(session: Session, outcome: Outcome, skipped: Sequence[str], seconds: float) -> None:
    for sentence in _distinct(image["size"]["explanation"] for image in outcome.images):
        say(sentence)
    for caution in dict.fromkeys(caution for image in outcome.images for caution in image["cautions"]):
        say(f"Note: {caution}")
    parts = []
    if len(outcome.images) > 1:
        parts.append(f"{len(outcome.images)} images in {seconds:.1f} s, {seconds / len(outcome.images):.2f} s each")
    if skipped:
        parts.append(f"{len(skipped)} were there already and are skipped")
    if parts:
        say(f"{'; '.join(parts)}.")
    for sentence in session.remarks():
        say(sentence)


def _distinct(sentences: Iterable[str], at_most: int = 3) -> list[str]:
    """The first few different ones: a folder of many sizes would say as many."""
    distinct = list(dict.fromkeys(sentences))
    rest = len(distinct) - at_most
    return [*distinct[:at_most], *([f"{rest} other sizes were planned in the same way."] if rest > 0 else [])]
