"""One image under several presets: their seconds, and their pictures in one strip.

A look, not a measurement: each preset makes one picture to warm up and one that is timed, in one process. What is to be
claimed takes `kontext bench`, and what presets do to images on average `kontext verify`.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kontext_fast.errors import InvalidInput, OutOfMemory, Refused
from kontext_fast.optimizations.acceleration import apply_plan, current, resolve_on
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.presets import PRESETS, Plan, Preset, find_preset
from kontext_fast.pipeline.device import memory_errors
from kontext_fast.pipeline.edit import EditRequest, EditResult, edit, make_request
from kontext_fast.pipeline.images import data_url
from kontext_fast.records.schema import BASELINE, EMULATED

if TYPE_CHECKING:
    from PIL import ImageFont
    from PIL.Image import Image

OnProgress = Callable[[str, int, int], None]
"""Called with a preset, and how many of its steps of all calls are done."""

_TILE = 256
"""Width of a picture in the strip, in pixels."""
_MARGIN = 16
_LINE = 22
_INK, _DIM, _PAPER = "#1b1f24", "#5f6b76", "#ffffff"


@dataclass(frozen=True)
class Shot:
    """What became of one preset."""

    preset: str
    result: EditResult | None
    """Of the call that was timed; None where the preset did not run."""
    first_seconds: float | None = None
    """Of the call before it, which may have compiled something."""
    reason: str | None = None
    """Why it did not run."""
    emulated: bool = False
    """Whether its kernels are emulated here, so that its time is no speed."""

    @property
    def seconds(self) -> float | None:
        """The time of one call; None where no time means a speed."""
        return None if self.result is None or self.emulated else self.result.seconds

    @property
    def outcome(self) -> str:
        """`1.94 s`, or why there is no time, in few words."""
        if self.result is None:
            return "refused"
        return "emulated: no speed" if self.emulated else f"{self.result.seconds:.2f} s"

    @property
    def steps(self) -> str:
        """`9 of 28 steps`."""
        if self.result is None:
            return ""
        every, computed = len(self.result.step_kinds), self.result.computed_steps
        steps = f"{every} step{'' if every == 1 else 's'}"
        return steps if computed == every else f"{computed} of {steps}"


@dataclass(frozen=True, repr=False)
class Showcase:
    """The pictures of one edit under several presets. A notebook shows them with their seconds."""

    request: EditRequest
    shots: tuple[Shot, ...]
    device: str
    """What it ran on, as a person calls it."""

    def factor(self, shot: Shot) -> float | None:
        """How many times as fast as baseline; None where one of both has no time."""
        baseline = next((other.seconds for other in self.shots if other.preset == BASELINE), None)
        return None if baseline is None or shot.seconds is None else baseline / shot.seconds

    @property
    def note(self) -> str:
        return f"One call each after one to warm up, in one process on {self.device}; kontext bench measures."

    def strip(self) -> Image:
        """All pictures side by side, the input first, with the seconds under each."""
        return _strip(self)

    def save(self, path: str | Path) -> None:
        """Write the strip as PNG, JPEG or WebP. Raises InvalidInput where that is not possible."""
        try:
            self.strip().save(path)
        except (OSError, ValueError) as error:
            raise InvalidInput(f"{path} cannot be written ({error}); give another place, such as strip.png.") from None

    def __repr__(self) -> str:
        rows = [("preset", "seconds", "factor", "steps"), *map(self._cells, self.shots)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *self.refusals(), self.note])

    def _repr_html_(self) -> str:
        figures = [_figure(self.request.image, "input", "")] if self.request.image is not None else []
        for shot in self.shots:
            name, *details = self._cells(shot)
            figures.append(_figure(shot.result.image if shot.result else None, name, " ".join(filter(None, details))))
        notes = "<br>".join(map(html.escape, [*self.refusals(), self.note]))
        return (
            f"<p>{html.escape(self.request.instruction)}</p>"
            f'<div style="display:flex;flex-wrap:wrap;gap:12px">{"".join(figures)}</div><p><small>{notes}</small></p>'
        )

    def refusals(self) -> list[str]:
        """Why presets did not run, one sentence each."""
        return [f"{shot.preset}: {shot.reason}" for shot in self.shots if shot.reason is not None]

    def _cells(self, shot: Shot) -> tuple[str, str, str, str]:
        factor = self.factor(shot)
        return shot.preset, shot.outcome, "" if factor is None else f"{factor:.2f}x", shot.steps


def default_presets() -> tuple[str, ...]:
    """Baseline and all combinations that compile nothing, which would take minutes for one picture."""
    from kontext_fast.optimizations.registry import discover

    combinations = [name for name in PRESETS if name not in discover()]
    return tuple(
        name for name in combinations if all(part.name != "compile" for part in find_preset(name).optimizations)
    )


def showcase(
    pipe: Any,
    presets: Sequence[str | Preset | Sequence[Optimization]] | None,
    image: Any,
    prompt: str | None = None,
    *,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> Showcase:
    """Edit `image` on `pipe` as `prompt` says under each of `presets`, all with the same seed.

    `presets` of None are baseline and all presets that compile nothing. `image`, `prompt` and `options` are those of
    `edit`. The pipeline is as before afterwards. What this machine or pipeline refuses is shown with the reason.
    Raises InvalidInput for an unknown preset and for a pipeline that is accelerated already, and what `edit` raises.
    """
    if current(pipe) is not None:
        raise InvalidInput("This pipeline is accelerated; call revert() on that first, since presets are compared.")
    request = make_request(image, prompt, **options)
    chosen = (presets,) if isinstance(presets, str) else presets or default_presets()
    plans = plans_or_reasons([(_name(preset), partial(resolve_on, pipe, preset)) for preset in chosen])
    return show_plans(pipe, plans, request, on_progress=on_progress)


def _name(preset: str | Preset | Sequence[Optimization]) -> str:
    if isinstance(preset, str | Preset):
        return preset if isinstance(preset, str) else preset.name
    return "+".join(optimization.name for optimization in preset)


def plans_or_reasons(presets: Sequence[tuple[str, Callable[[], Plan]]]) -> list[tuple[str, Plan | str]]:
    """The name of each preset with its plan, or with why this machine refuses it. Raises InvalidInput."""
    names = [name for name, _ in presets]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise InvalidInput(f"The preset {repeated[0]} is named twice; name each once.")
    plans: list[tuple[str, Plan | str]] = []
    for name, plan in presets:
        try:
            plans.append((name, plan()))
        except Refused as error:
            plans.append((name, str(error)))
    return plans


def show_plans(
    pipe: Any,
    plans: Sequence[tuple[str, Plan | str]],
    request: EditRequest,
    *,
    device: Any = None,
    on_progress: OnProgress | None = None,
) -> Showcase:
    """The showcase of `plans`, each with its name, or with why it cannot run.

    `device` is where plans run that leave the pipeline in host memory. Raises what `edit` raises.
    """
    request = replace(request, seed=request.seeds()[0], batch=1)
    shots = []
    for name, plan in plans:
        if isinstance(plan, str):
            shots.append(Shot(name, None, reason=plan))
            continue
        try:
            shots.append(_shot(pipe, name, plan, request, device, on_progress or (lambda *_: None)))
        except (_NotApplied, Refused, OutOfMemory) as error:
            shots.append(Shot(name, None, reason=str(error)))
    return Showcase(request, tuple(shots), _device_name(pipe._execution_device))


class _NotApplied(Exception):
    """A preset cannot be applied to this pipeline."""


def _shot(pipe: Any, name: str, plan: Plan, request: EditRequest, device: Any, on_progress: OnProgress) -> Shot:
    calls = 2
    results: list[EditResult] = []

    def on_step(done: int, total: int) -> None:
        on_progress(name, len(results) * total + done, calls * total)

    on_progress(name, 0, calls * request.steps)
    with _applied(plan, pipe, device):
        while len(results) < calls:
            results.append(edit(pipe, request, on_step=on_step))
    return Shot(name, results[-1], results[0].seconds, emulated=EMULATED in plan.labels)


@contextmanager
def _applied(plan: Plan, pipe: Any, device: Any) -> Iterator[None]:
    try:
        with memory_errors(f"applying {plan.preset}"):
            acceleration = apply_plan(plan, pipe, device if plan.in_host_memory else None)
    except InvalidInput as error:
        raise _NotApplied(str(error)) from error
    with acceleration:
        yield


def _device_name(device: Any) -> str:
    if device.type != "cuda":
        return "the CPU" if device.type == "cpu" else str(device)
    import torch

    return torch.cuda.get_device_name(device)


def _figure(image: Image | None, name: str, details: str) -> str:
    picture = "" if image is None else f'<img src="{data_url(image)}" alt="" width="{_TILE}">'
    caption = f"<b>{html.escape(name)}</b><br>{html.escape(details)}"
    return f'<figure style="margin:0">{picture}<figcaption>{caption}</figcaption></figure>'


def _strip(showcase: Showcase) -> Image:
    from PIL import Image, ImageDraw

    tiles: list[tuple[Image.Image | None, tuple[str, ...]]] = []
    if showcase.request.image is not None:
        tiles.append((_fitted(showcase.request.image), ("input",)))
    for shot in showcase.shots:
        factor = showcase.factor(shot)
        time = shot.outcome if factor is None or shot.preset == BASELINE else f"{shot.outcome}  {factor:.2f}x"
        tiles.append((None if shot.result is None else _fitted(shot.result.image), (shot.preset, time, shot.steps)))
    height = max((picture.height for picture, _ in tiles if picture is not None), default=_TILE)
    width = _MARGIN + len(tiles) * (_TILE + _MARGIN)
    plain, bold = _font(15), _font(16, bold=True)
    title = _lines(showcase.request.instruction, bold, width - 2 * _MARGIN)
    notes = [
        line for note in (*showcase.refusals(), showcase.note) for line in _lines(note, plain, width - 2 * _MARGIN)
    ]
    top = _MARGIN + len(title) * _LINE + _MARGIN // 2
    below = top + height + _MARGIN // 2
    strip = Image.new("RGB", (width, below + 3 * _LINE + _MARGIN + len(notes) * _LINE + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(strip)
    for number, line in enumerate(title):
        draw.text((_MARGIN, _MARGIN + number * _LINE), line, _INK, bold)
    for column, (picture, lines) in enumerate(tiles):
        left = _MARGIN + column * (_TILE + _MARGIN)
        if picture is None:
            draw.rectangle((left, top, left + _TILE - 1, top + height - 1), outline=_DIM)
        else:
            strip.paste(picture, (left, top))
        for number, line in enumerate(lines):
            draw.text((left, below + number * _LINE), line, _DIM if number == 2 else _INK, plain if number else bold)
    for number, line in enumerate(notes):
        draw.text((_MARGIN, below + 3 * _LINE + _MARGIN + number * _LINE), line, _DIM, plain)
    return strip


def _fitted(image: Image) -> Image:
    """`image` as wide as a tile, at most twice as high."""
    from PIL.Image import Resampling

    width, height = _TILE, max(1, round(_TILE * image.height / image.width))
    if height > 2 * _TILE:
        width, height = max(1, round(2 * _TILE * image.width / image.height)), 2 * _TILE
    return image.resize((width, height), Resampling.LANCZOS if image.width > width else Resampling.NEAREST)


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font of the charts, since that of Pillow knows hardly more than English."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _lines(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """`text` in lines of at most `width` pixels, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
