"""`kontext bench --roofline`: runs and prints the table of one step of each preset."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from kontext_fast.cli.output import print_json, say
from kontext_fast.errors import Refused

if TYPE_CHECKING:
    from kontext_fast.bench.roofline import Category, Roofline, StepRoofline
    from kontext_fast.bench.suites import Suite

FILE = "roofline.json"
_LISTED = 16
_CATEGORIES: tuple[Category, ...] = ("linear", "attention", "element-wise")


def run_rooflines(suite: Suite, out: Path, *, checkpoint: str, device: str | None, as_json: bool) -> None:
    """Print the table of every preset of `suite` at its first size, and write all numbers to roofline.json in `out`.

    Raises Refused if this machine can run none of them, else what loading raises.
    """
    from kontext_fast.bench.roofline import roofline
    from kontext_fast.bench.suites import NATIVE
    from kontext_fast.pipeline.sizes import parse_size

    size = None if suite.sizes[0] == NATIVE else parse_size(suite.sizes[0])

    rooflines: list[Roofline] = []
    refused: list[str] = []
    for preset in suite.presets:
        say(f"profiling one step of {preset}")
        try:
            measured = roofline(checkpoint, preset, device=device, size=size, steps=suite.steps[0])
        except Refused as error:
            refused.append(str(error))
            say(str(error))
            continue
        rooflines.append(measured)
        if not as_json:
            print(table(measured))
    if not rooflines:
        raise Refused(refused[0])
    content = {"checkpoint": checkpoint, "rooflines": [asdict(measured) for measured in rooflines], "refused": refused}
    out.mkdir(parents=True, exist_ok=True)
    (out / FILE).write_text(json.dumps(content, indent=1) + "\n")
    if as_json:
        print_json(content)
    else:
        print(f"All numbers are in {out / FILE}.")


def table(roofline: Roofline) -> str:
    """The table as text; times are those of the profiled step."""
    tokens = roofline.tokens
    best = roofline.ceilings
    lines = [
        f"{roofline.preset} on {roofline.device}: {tokens.text} text, {tokens.image} image and {tokens.reference} "
        "reference tokens",
        f"best rates measured here: products {best.linear_flop / 1e12:.3g} TFLOP/s, attention "
        f"{best.attention_flop / 1e12:.3g} TFLOP/s, copies {best.copy_bytes / 1e12:.3g} TB/s",
    ]
    for step in roofline.steps:
        lines += _of_step(step)
    lines += [f"{kind}: not profiled (only step 0 is of this kind)" for kind in roofline.not_seen]
    return "\n".join([*lines, ""])


def _of_step(step: StepRoofline) -> list[str]:
    whole = step.seconds or float("inf")
    lines = [
        f"step {step.step}, {step.kind}: {1e3 * step.seconds:.2f} ms while profiled, floor {1e3 * step.floor_s:.2f} ms",
        f"  {'':60} {'calls':>6} {'ms':>9} {'share':>7} {'floor ms':>9} {'of floor':>9}",
    ]
    for category in _CATEGORIES:
        lines.append(_row(category, None, step.seconds_of(category), whole, step.floors_s[category]))
    lines.append(_row("idle", None, step.idle_s, whole, None))
    for kernel in step.kernels[:_LISTED]:
        lines.append(_row(f"  {kernel.name}", kernel.calls, kernel.seconds, whole, kernel.floor_s))
    if rest := step.kernels[_LISTED:]:
        calls, seconds = sum(kernel.calls for kernel in rest), sum(kernel.seconds for kernel in rest)
        lines.append(_row(f"  {len(rest)} more", calls, seconds, whole, None))
    return lines


def _row(name: str, calls: int | None, seconds: float, whole: float, floor_s: float | None) -> str:
    floor = "" if floor_s is None else f"{1e3 * floor_s:9.3f}"
    reached = "" if not floor_s or not seconds else f"{floor_s / seconds:9.0%}"
    count = "" if calls is None else str(calls)
    return f"  {name[:60]:60} {count:>6} {1e3 * seconds:9.3f} {seconds / whole:7.1%} {floor:>9} {reached:>9}".rstrip()
