"""`kontext edit`: one image, or every image of a folder, by one instruction."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kontext_fast.cli import options
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations import DEFAULT_PRESET

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

_EDITED = ".edited.png"


def command(
    image: Annotated[Path, typer.Argument(metavar="IMAGE|DIR", help="An image, or a folder of images.")],
    instruction: Annotated[str, typer.Argument(help='What to change, for example "make the car red".')],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="PNG file, or a folder for a folder. [default: NAME.edited.png]", show_default=False
        ),
    ] = None,
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
    """Edit an image, or every image of a folder, as the instruction says."""
    from dataclasses import replace

    from kontext_fast.cli.session import Setup, open_session, report
    from kontext_fast.pipeline.inputs import to_rgb
    from kontext_fast.pipeline.png import check_png_path
    from kontext_fast.pipeline.request import EditRequest
    from kontext_fast.pipeline.sizes import parse_size

    request = EditRequest(
        instruction,
        steps=steps,
        guidance=guidance,
        seed=seed,
        negative=negative,
        true_cfg=true_cfg,
        size=parse_size(size) if size else None,
    )
    jobs = _folder_jobs(image, out) if image.is_dir() else {image: _output_of(image, out)}
    if not image.is_dir():
        request = replace(request, image=to_rgb(image))
        check_png_path(jobs[image])
    setup = Setup(checkpoint=checkpoint, preset=preset, lora=lora, device=device)
    made: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    with open_session(setup) as session:
        for source, output in jobs.items():
            try:
                given = request if request.image is not None else replace(request, image=to_rgb(source))
                made.append(session.save(given, output, source=source))
            except InvalidInput as error:
                if not image.is_dir():
                    raise
                failed.append({"input": str(source), "reason": str(error)})
                print(error, file=sys.stderr)
        report(made, session, setup, as_json=json, failed=failed)
    if failed:
        raise InvalidInput(f"{len(failed)} of {len(jobs)} images were not edited; give intact copies of them.")


def _folder_jobs(folder: Path, out: Path | None) -> dict[Path, Path]:
    """Each image of `folder` and where its edit goes; earlier edits are not edited again."""
    if out is not None and out.exists() and not out.is_dir():
        raise InvalidInput(f"{out} is a file, and a folder of images needs a folder; give another name.")
    images = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in _SUFFIXES and not path.name.endswith(_EDITED) and path.is_file()
    ]
    if not images:
        raise InvalidInput(f"The folder {folder} has no images; give an image or a folder with some.")
    stems = [path.stem for path in images]
    return {
        path: (out or folder) / f"{path.stem if stems.count(path.stem) == 1 else path.name}{_EDITED}" for path in images
    }


def _output_of(image: Path, out: Path | None) -> Path:
    return out or image.with_name(image.stem + _EDITED)
