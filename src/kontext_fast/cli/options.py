"""Options that several commands share, so that they are called and explained alike everywhere."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from kontext_fast.cost import Billing
from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.load import KONTEXT_DEV, choices

Checkpoint = Annotated[
    str | None,
    typer.Option(
        help=f"{choices()}. [default: {KONTEXT_DEV} with a GPU and HF_TOKEN, else tiny]",
        show_default=False,
    ),
]
Preset = Annotated[str, typer.Option(help="How the pipeline is made faster; see kontext presets.")]
Steps = Annotated[int, typer.Option(help="Denoising steps.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the noise.", show_default="drawn")]
Guidance = Annotated[float, typer.Option(help="How closely the instruction is followed.")]
Negative = Annotated[str | None, typer.Option(help="What to avoid; needs --true-cfg above 1.", show_default=False)]
TrueCfg = Annotated[float, typer.Option(help="Scale of true classifier-free guidance; above 1 it doubles the work.")]
OutputSize = Annotated[
    str | None,
    typer.Option(
        metavar="WxH",
        help="Output size in multiples of 16. [default: the native area in the aspect of the input]",
        show_default=False,
    ),
]
Lora = Annotated[str | None, typer.Option(metavar="PATH[:STRENGTH]", help="A LoRA in safetensors.", show_default=False)]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N. [default: the first GPU, else cpu]", show_default=False)
]
Records = Annotated[
    Path, typer.Argument(metavar="RECORDS", help="A folder that a bench wrote, or a JSON file of records in it.")
]
ImagesPerDay = Annotated[float, typer.Option(help="Volume to price.")]
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
    float | None, typer.Option(help="What the development cost, for the payback time.", show_default=False)
]
UpkeepUsd = Annotated[float, typer.Option(help="What the upkeep costs every month, for the payback time.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on the last line of stdout.")]


def split(text: str | None) -> tuple[str, ...] | None:
    """The parts of a list with commas; None where there is none."""
    return None if text is None else tuple(part.strip() for part in text.split(","))


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
