"""`kontext edit`: one image, several, or every image of a folder, by one instruction, or the rows of a manifest."""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kontext_fast.cli import options
from kontext_fast.cli.command_class import Group
from kontext_fast.cli.session import (
    ImageJob,
    Maker,
    Setup,
    make_here,
    make_images,
    numbered,
    require_count,
    setup_for_pictures,
)
from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.images import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from kontext_fast.cli.rows.manifest import Manifest
    from kontext_fast.cli.rows.run import Runner
    from kontext_fast.pipeline.edit import EditRequest

GROUP = Group.IMAGES

_EDITED = re.compile(r"\.(edited|showcase)(\.\d+)?\.png$")
_PATTERN = re.compile(r"[*?\[]")
_WEB = re.compile(r"https?://", re.IGNORECASE)


def command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar='IMAGE|DIR... "INSTRUCTION"',
            help='What to edit, and last what to change in it: photo.jpg "make the car red".',
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="PATH",
            parser=options.place,
            help="PNG, JPEG or WebP file, or a folder; s3:// too. [default: NAME.edited.png beside each]",
            show_default=False,
        ),
    ] = None,
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
    gpus: options.Gpus = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=options.place,
            help="JSONL, CSV, TSV or Parquet: a row an edit, a column an option. [edits go to FILE's name, or -o]",
            show_default=False,
        ),
    ] = None,
    facts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=options.place,
            help="Parquet file of how each image was made. [default: facts.parquet beside those of --manifest]",
            show_default=False,
        ),
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Edit on the machines of a Ray cluster, or on all GPUs of this one.")
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="The cluster of --ray. [default: RAY_ADDRESS, else this machine]",
            show_default=False,
        ),
    ] = None,
    stitch: Annotated[
        bool, typer.Option("--stitch", help="Join the images side by side to one input, instead of editing each.")
    ] = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Edit images as an instruction says.

    What is done already is skipped. Each file says how it was made. Several images run on all GPUs, one on each.
    """
    from kontext_fast.pipeline.edit import EditRequest
    from kontext_fast.pipeline.sizes import parse_size

    require_count(num_images)
    if ray_address is not None and not ray:
        raise InvalidInput("--ray-address names the cluster of --ray; add --ray.")
    runner: Runner | None = None
    elsewhere = False
    chosen = options.one_preset(preset)
    in_rows = manifest is not None or facts is not None or ray
    together = _together(chosen, gpus, device, in_rows=in_rows)
    paths, instruction = read_words(words or ()) if manifest is None else ([], instruction_of_rows(words or ()))
    images = images_of(paths)
    request = EditRequest(
        "to be said by each row" if instruction is None else instruction,
        steps=steps,
        guidance=guidance,
        seed=seed,
        negative=negative,
        true_cfg=true_cfg,
        size=parse_size(size) if size else None,
    )
    if stitch and len(images) < 2:
        raise InvalidInput(
            "--stitch joins several images to one; name them all before the instruction, or leave it out."
        )
    if ray:
        from kontext_fast.cli.rows.on_ray import RayRunner

        runner = RayRunner(ray_address, overwrite=overwrite)
        elsewhere = runner.has_gpus and device is None
    if manifest is not None:
        from kontext_fast.cli.rows.manifest import Defaults, read_manifest

        if num_images != 1:
            raise InvalidInput("A row of a manifest is one edit; write a row for each further image instead of -n.")
        folder = out or manifest.with_name(f"{manifest.stem}.edited")
        facts = facts or folder / "facts.parquet"
        defaults = Defaults(
            request=request,
            has_instruction=instruction is not None,
            checkpoint=checkpoint,
            preset=chosen,
            lora=lora or (),
            device=device,
            elsewhere=elsewhere,
        )
        rows = read_manifest(manifest, folder, defaults)
    else:
        into_folder = (len(images) > 1 and not stitch) or any(path.is_dir() for path in paths)
        outputs = outputs_of(images[:1] if stitch else images, out, count=num_images, into_folder=into_folder)
        jobs = _jobs(outputs, request, joined=images if stitch else ())
        setup = setup_for_pictures(checkpoint, chosen, lora or (), device, elsewhere=elsewhere)
        if runner is not None:
            facts = facts or jobs[0].file.path.with_name("facts.parquet")
        if facts is None:
            make = together or make_here
            if together is None and len(jobs) > 1:
                from kontext_fast.cli.rows.on_cards import make_on_cards as make
            make_images(jobs, setup, overwrite=overwrite, quiet=quiet, as_json=json, make=make)
            return
        rows = numbered_rows(setup, jobs)
    from kontext_fast.cli.rows.facts import FactsFile
    from kontext_fast.cli.rows.on_cards import edit_on_cards
    from kontext_fast.cli.rows.run import make_rows

    make_rows(rows, FactsFile(facts), runner or edit_on_cards, overwrite=overwrite, quiet=quiet, as_json=json)


def _together(preset: str, gpus: int | None, device: str | None, *, in_rows: bool) -> Maker | None:
    """What makes each image on `gpus` together, or on those of torchrun; None for one GPU. Raises InvalidInput."""
    if gpus is None and "RANK" not in os.environ:
        return None
    from kontext_fast.cli.together import gpus_of, maker

    count = gpus_of(gpus)
    if count < 2:
        return None
    if in_rows:
        raise InvalidInput(
            "--gpus makes each image on several GPUs together; leave out --manifest, --facts and --ray, or "
            "leave out --gpus for one image on each."
        )
    return maker(preset, count, device)


def _jobs(outputs: Mapping[Path, Sequence[Path]], request: EditRequest, joined: Sequence[Path]) -> list[ImageJob]:
    """A job for each file of `outputs`, with seeds one after the other; of the images `joined` where there are any."""
    from dataclasses import replace

    from kontext_fast.pipeline.images import ImageFile

    if joined:
        request = replace(request, image=list(joined))
    elif len(outputs) == 1:
        # Opened now, so that what is wrong with it is said before anything is loaded.
        request = replace(request, image=next(iter(outputs)))
    return [
        ImageJob(
            image,
            ImageFile(file),
            replace(request, seed=None if request.seed is None else request.seed + number),
            joined=tuple(joined[1:]),
        )
        for image, files in outputs.items()
        for number, file in enumerate(files)
    ]


def numbered_rows(setup: Setup, jobs: Sequence[ImageJob]) -> Manifest:
    """`jobs` of one setup as rows, in their order."""
    from dataclasses import replace

    from kontext_fast.cli.rows.manifest import Manifest

    return Manifest([(setup, [replace(job, row=number) for number, job in enumerate(jobs, 1)])], (), ())


def instruction_of_rows(words: Sequence[str]) -> str | None:
    """The instruction of rows that have none of their own. Raises InvalidInput where there are images, too."""
    if len(words) > 1:
        raise InvalidInput(
            f"A manifest names its images; write kontext edit --manifest FILE {shlex.quote(words[-1])} for the "
            "instruction of rows that have none."
        )
    return words[0] if words else None


def read_words(words: Sequence[str]) -> tuple[list[Path], str]:
    """Images and folders, and the instruction, which comes last. Raises InvalidInput that says how to write it."""
    if not words:
        raise InvalidInput(
            'What to edit is missing; write kontext edit IMAGE|DIR... "INSTRUCTION", or --manifest FILE; see --help.'
        )
    *named, instruction = words
    example = f"kontext edit {shlex.quote(named[0] if named else 'photo.jpg')} "
    if not named:
        if Path(instruction).exists():
            raise InvalidInput(
                f'The instruction is missing; write kontext edit {shlex.quote(instruction)} "make the car red".'
            )
        raise InvalidInput(f"The image is missing; write kontext edit photo.jpg {shlex.quote(instruction)}.")
    for word in named:
        if _WEB.match(word):
            raise InvalidInput(f"{word} is an address of the web, which is not read: download it first, then edit it.")
    missing = [word for word in named if not _exists(word)]
    if missing and Path(instruction).exists():
        raise InvalidInput(
            f"The image comes first and the instruction last; write kontext edit {shlex.quote(instruction)} "
            f"{shlex.quote(' '.join(missing))}."
        )
    if len(named) > 1 and missing == named[1:]:
        raise InvalidInput(f'Put the instruction in quotes; write {example}"{" ".join([*missing, instruction])}".')
    if missing:
        raise InvalidInput(f"There is no image {missing[0]}; check the path.")
    return [path for word in named for path in _expanded(word)], instruction


def images_of(paths: Sequence[Path]) -> list[Path]:
    """The images that `paths` name, each once; of a folder all in it but earlier edits. Raises InvalidInput.

    Of images beside their earlier edits, as `*.png` gives them, the edits are left out, too.
    """
    images: dict[Path, None] = {}
    for path in paths:
        images.update(dict.fromkeys(_in_folder(path) if path.is_dir() else [path]))
    stems = {path.with_name(path.stem) for path in images}
    return [
        path for path in images if path.with_name(_EDITED.sub("", path.name)) not in stems - {path.with_name(path.stem)}
    ]


def outputs_of(images: Sequence[Path], out: Path | None, *, count: int, into_folder: bool) -> dict[Path, list[Path]]:
    """Where the `count` edits of each image go; `into_folder`: `out` is a folder whatever its name.

    Raises InvalidInput where two edits would be one file, or an edit its own input.
    """
    folder = out if out is not None and (into_folder or out.is_dir() or not out.suffix) else None
    if folder is not None and folder.exists() and not folder.is_dir():
        raise InvalidInput(f"{folder} is a file, and several edits need a folder; give another name.")
    file = None if folder is not None else out
    stems = Counter((image.parent if folder is None else None, image.stem) for image in images)
    outputs: dict[Path, list[Path]] = {}
    takers: dict[Path, Path] = {}
    for image in images:
        alone = stems[image.parent if folder is None else None, image.stem] == 1
        name = f"{image.stem if alone else image.name}.edited.png"
        first = file or (folder or image.parent) / name
        outputs[image] = [first] if count == 1 else [numbered(first, number) for number in range(1, count + 1)]
        for output in outputs[image]:
            if (other := takers.setdefault(output.resolve(), image)) is not image:
                raise InvalidInput(f"The edits of {other} and {image} would both be {output}; edit them one by one.")
            if output.resolve() == image.resolve():
                raise InvalidInput(f"The edit of {image} would replace it; give -o another name.")
    return outputs


def _exists(word: str) -> bool:
    # A word that is too long for a path, or holds a NUL, names nothing.
    if "://" in word:
        from kontext_fast.records.addresses import is_there

        return is_there(options.place(word))
    try:
        return bool(word) and (Path(word).exists() or bool(_matches(word)))
    except (OSError, ValueError):
        return False


def _matches(word: str) -> list[str]:
    """The files that a pattern names which the shell left alone, as shells of Windows do."""
    return sorted(glob.glob(word)) if _PATTERN.search(word) else []


def _expanded(word: str) -> list[Path]:
    if "://" in word:
        return [options.place(word)]
    return [Path(word)] if Path(word).exists() else [Path(match) for match in _matches(word)]


def _in_folder(folder: Path) -> list[Path]:
    images = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES and not _EDITED.search(path.name) and path.is_file()
    ]
    if not images:
        raise InvalidInput(f"The folder {folder} has no images; give an image or a folder with some.")
    return images
