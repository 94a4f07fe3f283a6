"""Options that several commands share, so that they are called and explained alike everywhere.

Where diffusers has another name for something, it is understood beside the short one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from kontext_fast.cli.output import say
from kontext_fast.cost import Billing
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations import DEFAULT_PRESET
from kontext_fast.pipeline.load import KONTEXT_DEV, choices


def place(text: str) -> Path:
    """A path, or an address such as `s3://bucket/photos`. Raises InvalidInput or Refused for what cannot be read."""
    if "://" not in text:
        return Path(text)
    from kontext_fast.records.addresses import place

    return place(text)


def preset_names(incomplete: str) -> list[str]:
    """What a shell may complete."""
    from kontext_fast.optimizations.presets import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]


def _checkpoint_names(incomplete: str) -> list[str]:
    names = ("tiny", "random", KONTEXT_DEV)
    folders = [f"{path}" for path in Path().glob(f"{incomplete}*") if path.is_dir()] if incomplete else []
    return [name for name in (*names, *folders) if name.startswith(incomplete)]


def _device_names(incomplete: str) -> list[str]:
    return [name for name in ("cpu", "cuda", "cuda:0") if name.startswith(incomplete)]


Checkpoint = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"{choices()}. [default: {KONTEXT_DEV} on a GPU]",
        show_default=False,
        autocompletion=_checkpoint_names,
    ),
]
Preset = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help=f"How the pipeline is made faster; see kontext presets. [default: {DEFAULT_PRESET}]",
        show_default=False,
        autocompletion=preset_names,
    ),
]


def presets_option(of_none: str) -> typer.models.OptionInfo:
    """`--preset` of a command that takes several; `of_none` is what it takes where none is named."""
    option: typer.models.OptionInfo = typer.Option(
        "--preset",
        "--presets",
        metavar="NAME",
        help=f"A preset; give it again for more, or with commas. [default: {of_none}]",
        show_default=False,
        autocompletion=preset_names,
    )
    return option


Steps = Annotated[int, typer.Option("--steps", "--num-inference-steps", metavar="N", help="Denoising steps.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Seed of the noise.", show_default="drawn")]
Guidance = Annotated[
    float,
    typer.Option("--guidance", "--guidance-scale", metavar="G", help="How closely the instruction is followed."),
]
Negative = Annotated[
    str | None,
    typer.Option(
        "--negative",
        "--negative-prompt",
        metavar="TEXT",
        help="What to avoid; needs --true-cfg above 1.",
        show_default=False,
    ),
]
TrueCfg = Annotated[
    float,
    typer.Option(
        "--true-cfg",
        "--true-cfg-scale",
        metavar="X",
        help="Scale of true classifier-free guidance; above 1 it doubles the work.",
    ),
]
OutputSize = Annotated[
    str | None,
    typer.Option(
        metavar="WxH",
        help="Output size in multiples of 16. [default: the native area in the aspect of the input]",
        show_default=False,
    ),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(metavar="PATH[:STRENGTH]", help="A LoRA in safetensors; give it again for more.", show_default=False),
]
Images = Annotated[
    int, typer.Option("-n", "--num-images", metavar="N", help="Images of each, with seeds one after the other.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Make again what is done, and replace files that were made otherwise.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print the paths of results alone, and errors.")]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="cpu, cuda or cuda:N. [default: the first GPU, else cpu]",
        show_default=False,
        autocompletion=_device_names,
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option(metavar="N", help="GPUs that make each image together. [default: one]", show_default=False),
]
SeveralRecords = Annotated[
    list[Path],
    typer.Argument(metavar="RECORDS...", help="Folders that a bench wrote, or JSON files of records in them."),
]
RecordsOrSeconds = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="RECORDS...",
        help="Folders that a bench wrote, or JSON files of records in them.",
        show_default=False,
    ),
]
ImagesPerDay = Annotated[float, typer.Option(metavar="N", help="Volume to price.")]
PeakShare = Annotated[
    float,
    typer.Option(help="Of a day's images, what falls into the busiest hour.", show_default="1/24, an even load"),
]
BillingModel = Annotated[Billing, typer.Option("--billing", help="How the GPUs are paid.")]
Price = Annotated[
    str | None,
    typer.Option(
        metavar="ID|USD",
        help="A row of the price table, or dollars per GPU-hour. [default: the card's middle price]",
        show_default=False,
    ),
]
DevelopmentUsd = Annotated[
    float | None,
    typer.Option(metavar="USD", help="What the development cost, for the payback time.", show_default=False),
]
UpkeepUsd = Annotated[
    float, typer.Option(metavar="USD", help="What the upkeep costs every month, for the payback time.")
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print also what the table leaves out.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on the last line of stdout.")]


def names(values: Iterable[str] | None) -> tuple[str, ...] | None:
    """All names of a repeatable option, whether repeated or with commas; None where there are none."""
    if values is None:
        return None
    return tuple(part for value in values for part in split(value) or () if part) or None


def one_preset(values: Sequence[str] | None) -> str:
    """The preset of a command that applies one. Raises InvalidInput for several."""
    chosen = names(values) or (DEFAULT_PRESET,)
    if len(chosen) > 1:
        raise InvalidInput(
            f"One preset is applied at a time, not {' and '.join(chosen)}; run the command once with each."
        )
    return chosen[0]


def split(text: str | None) -> tuple[str, ...] | None:
    """The parts of a list with commas, of which those in brackets separate nothing; None where there is none."""
    return None if text is None else tuple(part.strip() for part in re.split(r",(?![^()]*\))", text))


def whole_numbers(text: str, what: str) -> tuple[int, ...]:
    """The numbers of a list with commas. Raises InvalidInput, which calls them `what`, for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidInput(f"The {what} {text!r} are not whole numbers; write for example 4,28.") from None


def checkpoint_or_default(
    checkpoint: str | None, device: str | None, default: Callable[[str | None], tuple[str, str]]
) -> str:
    """`checkpoint`, or the one that `default` chooses for `device`, which is said with the reason."""
    if checkpoint is not None:
        return checkpoint
    chosen, reason = default(device)
    say(f"The checkpoint is {chosen}, since {reason}.")
    return chosen


def lora_names(values: Sequence[str] | None) -> tuple[str, ...]:
    """The LoRAs of a command as records call them: file names with strengths, without the folders of this machine."""
    return tuple(f"{Path(path).name}:{strength:g}" for path, strength in map(parse_lora, values or ()))


def parse_lora(text: str) -> tuple[str, float]:
    """Path and strength of "PATH[:STRENGTH]"; a colon that no number follows belongs to the path."""
    path, separator, strength = text.rpartition(":")
    if not separator:
        return text, 1.0
    try:
        value = float(strength)
    except ValueError:
        return text, 1.0
    if not path or not math.isfinite(value):
        raise InvalidInput(f"{text!r} is not PATH[:STRENGTH]; write for example style.safetensors:0.8.")
    return path, value
