"""What `edit` and `generate` share: a pipeline set up as the options say, and the images made and saved with it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kontext_fast.cli.options import parse_lora
from kontext_fast.cli.output import Bar, print_json, progress_bar, say

if TYPE_CHECKING:
    from kontext_fast.pipeline.edit import EditRequest
    from kontext_fast.pipeline.images import PngFile
    from kontext_fast.pipeline.load import LoadedCheckpoint


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Options that decide the pipeline, as they were typed."""

    checkpoint: str | None
    preset: str
    lora: str | None
    device: str | None


class Session:
    """A loaded and accelerated pipeline that edits one request after another."""

    def __init__(self, loaded: LoadedCheckpoint, setup: Setup, reason: str | None, load_s: float, bar: Bar) -> None:
        """`reason` is why this checkpoint was chosen, where none was named."""
        self._loaded = loaded
        self._setup = setup
        self._reason = reason
        self._load_s = load_s
        self._bar = bar

    def save(self, request: EditRequest, output: PngFile, *, source: Path | None = None) -> dict[str, Any]:
        """Run `request`, write its image to `output` and return the facts for `--json`."""
        from kontext_fast.pipeline.edit import edit

        self._bar.begin(output.path.name, request.steps)
        begin = time.perf_counter()
        result = edit(self._loaded.pipe, request, on_step=self._bar.step)
        seconds = time.perf_counter() - begin
        output.save(
            result.images[0],
            seed=result.seeds[0],
            preset=self._setup.preset,
            checkpoint=self._loaded.facts.name,
            instruction=request.instruction,
        )
        return {
            "input": None if source is None else str(source),
            "path": str(output.path),
            "seed": result.seeds[0],
            "seconds": seconds,
            "size": asdict(result.size),
            "step_kinds": list(result.step_kinds),
            "cautions": list(result.cautions),
        }

    def report(self, images: list[dict[str, Any]], *, as_json: bool, **more: Any) -> None:
        """Print what `save` returned: JSON on stdout, or the paths on stdout and the choices behind them on stderr."""
        from kontext_fast.optimizations import DEFAULT_PRESET
        from kontext_fast.optimizations.presets import faster_presets

        if as_json:
            print_json({"images": images, **self._facts(), **more})
            return
        for image in images:
            print(image["path"])
        for sentence in dict.fromkeys(image["size"]["explanation"] for image in images):
            say(sentence)
        for caution in dict.fromkeys(caution for image in images for caution in image["cautions"]):
            say(f"Note: {caution}")
        choice = f"checkpoint {self._loaded.facts.name}, preset {self._setup.preset}"
        if self._reason is not None:
            choice += f" (no checkpoint was named, and {self._reason})"
        seeds = ", ".join(str(image["seed"]) for image in images)
        say(f"Made with {choice}, seed {seeds}.")
        if self._setup.preset == DEFAULT_PRESET:
            say(faster_presets())

    def _facts(self) -> dict[str, Any]:
        """What is the same for every image of the session."""
        return {
            "checkpoint": self._loaded.facts.model_dump(),
            "preset": self._setup.preset,
            "lora": self._setup.lora,
            "device": str(self._loaded.pipe._execution_device),
            "load_seconds": self._load_s,
        }


@contextmanager
def open_session(setup: Setup) -> Iterator[Session]:
    """Load and accelerate the pipeline. Everything that can be refused is refused before anything is loaded."""
    from kontext_fast.optimizations.acceleration import apply_plan
    from kontext_fast.optimizations.presets import resolve_for
    from kontext_fast.pipeline.device import Machine, choose_device
    from kontext_fast.pipeline.load import default_checkpoint, load
    from kontext_fast.pipeline.lora import load_lora

    device = choose_device(setup.device)
    checkpoint, reason = (setup.checkpoint, None) if setup.checkpoint else default_checkpoint(setup.device)
    plan = resolve_for(checkpoint, setup.preset, Machine.detect(device))
    with progress_bar() as bar, ExitStack() as stack:
        bar.begin(f"loading {checkpoint}")
        begin = time.perf_counter()
        loaded = load(checkpoint, device=device, in_host_memory=plan.in_host_memory)
        if setup.lora is not None:
            stack.enter_context(load_lora(loaded.pipe, *parse_lora(setup.lora)))
        if plan.optimizations:
            stack.enter_context(apply_plan(plan, loaded.pipe, device))
        yield Session(loaded, setup, reason, time.perf_counter() - begin, bar)
