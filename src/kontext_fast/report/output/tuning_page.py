"""The page of a tuning: what each number of evaluations comes to on held-out items, and the picture of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from kontext_fast.errors import InvalidInput
from kontext_fast.records.store import write_atomically
from kontext_fast.report import templates
from kontext_fast.report.environment import Fact
from kontext_fast.report.plots import style
from kontext_fast.report.plots.style import Canvas, Picture, Slot
from kontext_fast.report.plots.svg import tip

RESULT_FILE, PAGE, PICTURE = "tuning.json", "index.html", "frontier.png"

COLORS = {
    "fitted": style.PRESET_COLOR,
    "plain steps": style.VERMILION,
    "step_reuse": style.GREEN,
    "UniPC": style.ORANGE,
    "Adams-Bashforth": style.PURPLE,
    "DPM++": style.SKY,
}
"""Schemes that every number of evaluations is compared with; others are in the table alone."""
_BASELINE = "in float32"


def write_tuning_page(folder: Path) -> Path:
    """Write the page and the picture of the tuning in `folder`; returns the page. Raises InvalidInput without one."""
    try:
        result = json.loads((folder / RESULT_FILE).read_text())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{folder} holds no finished tuning; run kontext tune first.") from error
    picture = _picture(result)
    words = finding(result)
    write_atomically(folder / PICTURE, picture.png())
    page = templates.render(
        "tuning.html.j2",
        result=result,
        finding=words,
        facts=_facts(result),
        chart=Markup(picture.wide(words) + picture.narrow(words)),
        points=result["points"],
        baseline=[(name, figures, *_described(name, result["steps"])) for name, figures in result["baseline"].items()],
        number=_number,
        interval=_interval,
    )
    write_atomically(folder / PAGE, page.encode())
    return folder / PAGE


def finding(result: Mapping[str, Any]) -> str:
    """The result in a sentence or two."""
    points, steps, items = result["points"], result["steps"], result["items"]["held_out"]
    passing = [point for point in points if f"{point['evaluations']}.toml" in result["files"]]
    if not passing:
        told = ", ".join(f"{point['evaluations']} evaluations: {point['verdict']}" for point in points)
        return f"No preset file was written ({told}), judged on {items} edits that no fit has seen."
    best = max(passing, key=lambda point: point["evaluations"])
    fitted, plain = (best["distances"][name]["mean"] for name in ("fitted", "plain steps"))
    words = (
        f"With {best['evaluations']} evaluations, the fitted solver comes {plain / fitted:.1f} times as near to the "
        f"model's own answer as {best['evaluations']} plain steps, on {items} edits that no fit has seen."
    )
    accurate = [point["evaluations"] for point in points if point["closeness"] == "no farther"]
    if accurate:
        words += f" From {min(accurate)} evaluations on it is no farther from it than the {steps} steps of baseline."
    elif _BASELINE in result["baseline"]:
        words += f" That it is no farther from it than the {steps} steps of baseline was not shown."
    return words


def _described(name: str, steps: int) -> tuple[str, str]:
    """What a row of the table below the points is: its steps and its words."""
    if name == "reference error":
        return "", "the reference itself, estimated error"
    if name.startswith("steps of "):
        return "", f"the computed {name}"
    return str(steps), f"baseline {name}"


def _facts(result: Mapping[str, Any]) -> list[Fact]:
    items = result["items"]
    loras = ", ".join(result["loras"])
    return [
        Fact("Checkpoint", f"{result['checkpoint']}, {result['dtype']}{loras and f', with {loras}'}"),
        Fact("Blocks", " or ".join(dict.fromkeys(point["precision"] for point in result["points"]))),
        Fact("Calls", f"{result['steps']} steps, guidance {result['guidance']:g}, {', '.join(result['sizes'])}"),
        Fact("Items", f"{items['fit']} to fit to, {items['choose']} to choose by, {items['held_out']} held out"),
        Fact("Fitted towards", "the converged reference" if result["target"] == "converged" else "baseline's images"),
        Fact("Version", f"kontext-fast {result['kontext_fast_version']}"),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _interval(values: list[float] | None, digits: int = 2) -> str:
    return "no interval" if values is None else f"{values[0]:.{digits}f} to {values[1]:.{digits}f}"


class _Panel:
    """What the picture has beside its lines."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        self.title = "Mean distance to the model's own answer"
        self.subtitle = f"{result['checkpoint']}, {result['items']['held_out']} held-out edits; bars: 95 % intervals"


def _picture(result: Mapping[str, Any]) -> Picture:
    points = sorted(result["points"], key=lambda point: point["evaluations"])
    shown = [name for name in COLORS if any(name in point["distances"] for point in points)]
    legend = [(name, COLORS[name]) for name in shown]
    if _BASELINE in result["baseline"]:
        legend.append((f"{result['steps']} steps of baseline", style.BASELINE_COLOR))
    return style.panels_picture(
        f"A solver fitted to {result['checkpoint']}, beside others of as many evaluations",
        [_Panel(result)],
        lambda _, canvas: _height_in(canvas),
        partial(_draw, points=points, shown=shown, baseline=result["baseline"].get(_BASELINE)),
        legend,
    )


def _height_in(canvas: Canvas) -> float:
    return 3.6 if canvas.narrow else 4.4


def _draw(
    slot: Slot, _: _Panel, *, points: list[dict[str, Any]], shown: list[str], baseline: Mapping[str, Any] | None
) -> None:
    from matplotlib.ticker import MaxNLocator

    axes = slot.axes(0.17 if slot.canvas.narrow else 0.085, 0.975)
    if baseline is not None:
        if baseline["mean_interval"] is not None:
            axes.axhspan(*baseline["mean_interval"], color=style.BASELINE_COLOR, alpha=0.16, linewidth=0, zorder=0)
        axes.axhline(baseline["mean"], color=style.BASELINE_COLOR, linewidth=1.6, linestyle=style.DASHED, zorder=1)
    for place, name in enumerate(shown):
        of_scheme = [(point["evaluations"], point["distances"][name]) for point in points if name in point["distances"]]
        # Side by side, so that no interval hides another.
        across = [number + 0.06 * (place - (len(shown) - 1) / 2) for number, _ in of_scheme]
        bold = name == "fitted"
        axes.plot(
            across, [figures["mean"] for _, figures in of_scheme], color=COLORS[name], linewidth=2.4 if bold else 1.2
        )
        for x, (number, figures) in zip(across, of_scheme, strict=True):
            if figures["mean_interval"] is not None:
                axes.plot([x, x], figures["mean_interval"], color=COLORS[name], linewidth=1.4, alpha=0.7)
            (mark,) = axes.plot(
                [x], [figures["mean"]], "o", markersize=8 if bold else 6, color=COLORS[name],
                markeredgecolor=style.PAPER, zorder=4 if bold else 3,
            )  # fmt: skip
            tip(
                mark,
                f"{name}, {number} evaluations: mean {figures['mean']:.4f} ({_interval(figures['mean_interval'], 4)})",
            )
    axes.set_ylim(bottom=0)
    if len(points) == 1:
        middle = points[0]["evaluations"]
        axes.set_xlim(middle - 1, middle + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.clean(axes, "both", x="evaluations of the transformer per edit", y="relative distance")
