"""`kontext generate`: text-to-image through the same path as an edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kontext_fast.cli import options
from kontext_fast.cli.command_class import Group
from kontext_fast.cli.session import ImageJob, make_images, numbered, require_count, setup_for_pictures
from kontext_fast.errors import InvalidInput

GROUP = Group.IMAGES


def command(
    words: Annotated[list[str], typer.Argument(metavar='"PROMPT"', help='What to draw, for example "a red car".')],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="PNG, JPEG or WebP file.")] = Path(
        "generated.png"
    ),
    num_images: options.Images = 1,
    checkpoint: options.Checkpoint = None,
    preset: options.Preset = None,
    steps: options.Steps = 28,
    seed: options.Seed = None,
    guidance: options.Guidance = 2.5,
    negative: options.Negative = None,
    true_cfg: options.TrueCfg = 1.0,
    size: options.OutputSize = None,
    lora: options.Lora = None,
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Make images from a description alone."""
    from dataclasses import replace

    from kontext_fast.pipeline.edit import EditRequest
    from kontext_fast.pipeline.images import ImageFile
    from kontext_fast.pipeline.sizes import parse_size

    require_count(num_images)
    if len(words) > 1:
        raise InvalidInput(f'Put the prompt in quotes; write kontext generate "{" ".join(words)}".')
    request = EditRequest(
        words[0],
        steps=steps,
        guidance=guidance,
        seed=seed,
        negative=negative,
        true_cfg=true_cfg,
        size=parse_size(size) if size else None,
    )
    jobs = []
    for number in range(num_images):
        asked = replace(request, seed=None if seed is None else seed + number)
        file = ImageFile(out if num_images == 1 else numbered(out, number + 1))
        jobs.append(ImageJob(source=None, file=file, asked=asked))
    setup = setup_for_pictures(checkpoint, options.one_preset(preset), lora or (), device)
    make_images(jobs, setup, overwrite=overwrite, quiet=quiet, as_json=json)
