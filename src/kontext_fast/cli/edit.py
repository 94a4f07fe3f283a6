"""`kontext edit`: one image, or every image of a folder, by one instruction."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kontext_fast.cli import options
from kontext_fast.cli.command_class import Group
from kontext_fast.cli.output import say
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations import DEFAULT_PRESET

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

_EDITED = ".edited.png"

GROUP = Group.IMAGES


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
    """Edit images as an instruction says."""
    from dataclasses import replace

    from kontext_fast.cli.session import Setup, open_session
    from kontext_fast.pipeline.edit import EditRequest
    from kontext_fast.pipeline.images import PngFile
    from kontext_fast.pipeline.sizes import parse_size

    is_folder = image.is_dir()
    request = EditRequest(
        instruction,
        None if is_folder else image,
        steps=steps,
        guidance=guidance,
        seed=seed,
        negative=negative,
        true_cfg=true_cfg,
        size=parse_size(size) if size else None,
    )
    outputs = _outputs_of_folder(image, out) if is_folder else {image: out or image.with_name(image.stem + _EDITED)}
    files = {source: PngFile(output) for source, output in outputs.items()}
    edited: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    with open_session(Setup(checkpoint=checkpoint, preset=preset, lora=lora, device=device)) as session:
        for source, file in files.items():
            try:
                this = replace(request, image=source) if is_folder else request
                edited.append(session.save(this, file, source=source))
            except InvalidInput as error:
                if not is_folder:
                    raise
                failed.append({"input": str(source), "reason": str(error)})
                say(str(error))
        session.report(edited, as_json=json, failed=failed)
    if failed:
        raise InvalidInput(f"{len(failed)} of {len(files)} images were not edited; give intact copies of them.")


def _outputs_of_folder(folder: Path, out: Path | None) -> dict[Path, Path]:
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
