"""`kontext generate`: text-to-image through the same path as an edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kontext_fast.cli import options
from kontext_fast.cli.command_class import Group
from kontext_fast.optimizations import DEFAULT_PRESET

GROUP = Group.IMAGES


def command(
    prompt: Annotated[str, typer.Argument(help='What to draw, for example "a red car".')],
    out: Annotated[Path, typer.Option("-o", "--out", help="PNG file.")] = Path("generated.png"),
    checkpoint: options.Checkpoint = None,
    preset: options.Preset = DEFAULT_PRESET,
    steps: options.Steps = 28,
    seed: options.Seed = None,
    guidance: options.Guidance = 2.5,
    negative: options.Negative = None,
    true_cfg: options.TrueCfg = 1.0,
    size: options.OutputSize = None,
    lora: options.Lora = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Make images from a description alone."""
    from kontext_fast.cli.session import Setup, open_session
    from kontext_fast.pipeline.edit import EditRequest
    from kontext_fast.pipeline.images import PngFile
    from kontext_fast.pipeline.sizes import parse_size

    request = EditRequest(
        prompt,
        steps=steps,
        guidance=guidance,
        seed=seed,
        negative=negative,
        true_cfg=true_cfg,
        size=parse_size(size) if size else None,
    )
    file = PngFile(out)
    with open_session(Setup(checkpoint=checkpoint, preset=preset, lora=lora, device=device)) as session:
        session.report([session.save(request, file)], as_json=json)
