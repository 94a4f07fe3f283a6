"""`kontext showcase`: one image under several presets, as one strip of pictures with their seconds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kontext_fast.cli import options
from kontext_fast.cli.command_class import Group
from kontext_fast.cli.edit import images_of, read_words
from kontext_fast.cli.output import Bar, print_json, progress_bar, say
from kontext_fast.cli.session import setup_for_pictures
from kontext_fast.errors import InvalidInput, Refused

if TYPE_CHECKING:
    from kontext_fast.bench.showcase import Showcase

GROUP = Group.IMAGES


def command(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar='IMAGE "INSTRUCTION"',
            help='What to edit, and what to change in it: photo.jpg "make the car red".',
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="PNG, JPEG or WebP file. [default: NAME.showcase.png beside it]",
            show_default=False,
        ),
    ] = None,
    checkpoint: options.Checkpoint = None,
    preset: Annotated[list[str] | None, options.presets_option("baseline and all presets that compile nothing")] = None,
    steps: options.Steps = 28,
    seed: options.Seed = None,
    guidance: options.Guidance = 2.5,
    size: options.OutputSize = None,
    lora: options.Lora = None,
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """One strip of an edit by all presets, with their seconds.

    Each makes one picture to warm up and one that is timed.
    """
    from kontext_fast.bench.showcase import default_presets, plans_or_reasons, show_plans
    from kontext_fast.optimizations.presets import find_preset, resolve_for
    from kontext_fast.pipeline.device import Machine, choose_device
    from kontext_fast.pipeline.edit import EditRequest
    from kontext_fast.pipeline.images import ImageFile, Origin
    from kontext_fast.pipeline.lora import load_with_loras
    from kontext_fast.pipeline.sizes import parse_size

    paths, instruction = read_words(words)
    if len(images := images_of(paths)) != 1:
        raise InvalidInput(f"A strip is of one image, not of {len(images)}; run the command once with each.")
    file = ImageFile(out or images[0].with_name(f"{images[0].stem}.showcase.png"))
    if file.path.exists() and not overwrite:
        raise InvalidInput(f"{file.path} is there already: add --overwrite, or give -o another name.")
    request = EditRequest(
        instruction,
        images[0],
        steps=steps,
        guidance=guidance,
        seed=seed,
        size=parse_size(size) if size else None,
    )
    presets = options.names(preset) or default_presets()
    for name in presets:
        find_preset(name)
    setup = setup_for_pictures(checkpoint, presets[0], lora or (), device)
    place = choose_device(device)
    machine = Machine.detect(place)
    plans = plans_or_reasons([(name, partial(resolve_for, setup.checkpoint, name, machine)) for name in presets])
    runnable = [plan for _, plan in plans if not isinstance(plan, str)]
    if not runnable:
        raise Refused(str(plans[0][1]))
    loaded_checkpoint = load_with_loras(
        setup.checkpoint,
        [options.parse_lora(text) for text in setup.lora],
        device=place,
        in_host_memory=all(plan.in_host_memory for plan in runnable),
    )
    with progress_bar() as bar:
        bar.begin(f"loading {setup.checkpoint}")
        with loaded_checkpoint as loaded:
            shown = show_plans(loaded.pipe, plans, request, device=place, on_progress=_display(bar, len(plans)))
    seed = shown.request.seed
    origin = Origin.of(
        shown.request, seed=seed, preset=",".join(presets), checkpoint=loaded.facts.name, lora=setup.lora_names
    )
    file.save(shown.strip(), origin)
    if json:
        print_json({"path": str(file.path), "checkpoint": loaded.facts.model_dump(), **_as_data(shown)})
        return
    print(shown)
    for sentence in loaded.unused:
        say(f"Note: {sentence}.")
    if loaded.facts.caution:
        say(loaded.facts.caution)
    print(f"The strip is {file.path}; its seed is {seed}.")


def _display(bar: Bar, presets: int) -> Callable[[str, int, int], None]:
    begun: list[str] = []

    def show(preset: str, done: int, total: int) -> None:
        if preset not in begun:
            begun.append(preset)
            bar.begin(f"{len(begun)} of {presets}  {preset}", total)
        bar.step(done, total)

    return show


def _as_data(shown: Showcase) -> dict[str, Any]:
    return {
        "seed": shown.request.seed,
        "device": shown.device,
        "presets": [
            {
                "preset": shot.preset,
                "seconds": shot.seconds,
                "first_seconds": shot.first_seconds,
                "factor": shown.factor(shot),
                "step_kinds": [] if shot.result is None else list(shot.result.step_kinds),
                "emulated": shot.emulated,
                "reason": shot.reason,
            }
            for shot in shown.shots
        ],
    }
