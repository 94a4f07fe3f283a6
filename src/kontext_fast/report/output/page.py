"""The page of a report: a report in, one self-contained HTML text out."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from jinja2 import Environment, PackageLoader, StrictUndefined

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.rows import Row
from kontext_fast.analysis.stages import STEP_KINDS
from kontext_fast.cost.analysis import Question
from kontext_fast.records.schema import BASELINE, CONTROL
from kontext_fast.report.costs import crossing_words
from kontext_fast.report.environment import environment_facts
from kontext_fast.report.gallery import Picture
from kontext_fast.report.model import Report
from kontext_fast.report.sections import Section
from kontext_fast.report.verdicts import PresetVerdict, Verdicts


def live_data(story: Report) -> dict[str, Any]:
    """JSON values, presets in the order of the page."""
    answer = dict(story.costs.live)
    answer["groups"] = [
        group | {"presets": _presets(group["presets"], section, story)}
        for group, section in zip(answer["groups"], story.sections, strict=True)
        if section.group.runs
    ]
    return answer


def _presets(priced: list[dict[str, Any]], section: Section, story: Report) -> list[dict[str, Any]]:
    by_name = {preset["preset"]: preset for preset in priced}
    names = [row.preset for row in section.rows if row.preset in by_name]
    return [_preset(by_name[name], section, story) for name in names]


def _preset(preset: dict[str, Any], section: Section, story: Report) -> dict[str, Any]:
    cost = section.cost_of(preset["preset"])
    time = cost.seconds_per_image if cost else None
    return preset | {
        "time": fmt.seconds_estimate(time) if time else fmt.NOT_MEASURED,
        "time_range": (fmt.seconds_range(time) if time else None) or "no interval",
        "records": [story.numbers[run_id] for run_id in preset["run_ids"]],
    }


MOST_PIXELS = 512
"""Longest side of an inlined picture; larger ones are scaled down and the full ones stay in the result folder."""


def data_uri(path: Path) -> str | None:
    """The picture at `path`, pixel for pixel if it is small; None where it is missing or no picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if max(image.size) <= MOST_PIXELS:
                return _encoded("png", path.read_bytes())
            small = image.copy()
    except (OSError, UnidentifiedImageError):
        return None
    small.thumbnail((MOST_PIXELS, MOST_PIXELS))
    webp = io.BytesIO()
    small.save(webp, format="WEBP", quality=92)
    return _encoded("webp", webp.getvalue())


def chart_uri(path: Path) -> str:
    """A drawn chart, which was just written as PNG, at its full size."""
    return _encoded("png", path.read_bytes())


def _encoded(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class Takeaway:
    name: str
    value: str
    detail: str
    section: str
    """Of the page, where the number is explained."""
    run_ids: tuple[str, ...]


def title(lead: Section | None) -> str:
    """The finding as a headline, as far as it may be claimed."""
    if lead is None or lead.best is None or lead.best.factor is None:
        return "How fast, and what it cost the image"
    machine = lead.group.machine or "an unknown machine"
    return f"{lead.best.preset}: {fmt.factor(lead.best.factor)} as fast on {machine}"


def takeaways(lead: Section | None, question: Question, verdicts: Verdicts) -> tuple[Takeaway, ...]:
    """Of the fastest preset that may be called faster than baseline; none where there is no such preset."""
    if lead is None or lead.best is None or lead.best.time is None:
        return ()
    best, baseline = lead.best, next((row for row in lead.rows if row.preset == BASELINE), None)
    run_ids = (*lead.run_ids(BASELINE), *lead.run_ids(best.preset))
    return (
        _speed(best, baseline, run_ids),
        _quality(lead, best, baseline, run_ids, verdicts.get(best.preset)),
        _memory(best, baseline, run_ids),
        _saved(lead, best, question, run_ids),
    )


def _speed(best: Row, baseline: Row | None, run_ids: tuple[str, ...]) -> Takeaway:
    assert best.factor is not None
    assert best.time is not None
    interval = fmt.factor_range(best.factor)
    times = fmt.seconds_estimate(best.time.mean)
    if baseline is not None and baseline.time is not None:
        times = f"{fmt.seconds_estimate(baseline.time.mean)} down to {times} a call"
    return Takeaway(
        "Speed", f"{fmt.factor(best.factor)} as fast", f"{times}; 95 % interval {interval}", "results", run_ids
    )


def _quality(
    lead: Section, best: Row, baseline: Row | None, run_ids: tuple[str, ...], verified: PresetVerdict | None
) -> Takeaway:
    if verified is not None:
        return Takeaway("Quality", verified.name, f"{verified.where}: {verified.reason}", "quality", ())
    if best.accepted is None:
        random = lead.group.checkpoint is not None and lead.group.checkpoint.random_weights
        why = "the weights are random, so there is no image to judge" if random else "no judge has seen these images"
        return Takeaway("Quality", fmt.NOT_MEASURED, why, "quality", run_ids)
    detail = f"of {fmt.count(best.accepted.n, 'item')}, by the judge"
    if baseline is not None and baseline.accepted is not None:
        detail += f"; baseline {fmt.percent(baseline.accepted.value)}"
    return Takeaway("Quality", f"{fmt.percent(best.accepted.value)} accepted", detail, "quality", run_ids)


def _memory(best: Row, baseline: Row | None, run_ids: tuple[str, ...]) -> Takeaway:
    details = [fmt.peak_memory_kind(best.memory)]
    if baseline is not None and baseline.time is not None:
        details.append(f"baseline {fmt.peak_memory(baseline.memory)}")
    detail = "; ".join(filter(None, details))
    return Takeaway("Peak memory", fmt.peak_memory(best.memory), detail, "memory", run_ids)


def _saved(lead: Section, best: Row, question: Question, run_ids: tuple[str, ...]) -> Takeaway:
    cost = lead.cost_of(best.preset)
    if cost is None or cost.savings_per_month is None or cost.cost is None:
        return Takeaway("Saved a month", "no price", lead.cost.refusal or "not priced", "cost", run_ids)
    basis = cost.cost.basis
    detail = (
        f"{question.demand.images_per_day:,.0f} images a day, billed {basis.billing} at "
        f"{basis.price.dated(question.today)}, {fmt.usd_rate(basis.price.usd_per_gpu_hour)} per GPU-hour"
    )
    return Takeaway("Saved a month", fmt.usd(cost.savings_per_month.value), detail, "cost", run_ids)


HEADINGS: Mapping[str, str] = {
    "speed": "Speed",
    "sizes": "Sizes and steps",
    "memory": "Peak memory and energy",
    "cold": "Cold: loading and the first call",
    "ablation": "Which optimization does what",
    "quality": "Quality: the images",
    "cost": "Cost",
}
"""Of every section of `charting.SECTIONS`, in the order of the page."""

SHORT: Mapping[str, str] = {
    "speed": "Speed",
    "sizes": "Sizes",
    "memory": "Memory",
    "cold": "Cold start",
    "ablation": "Ablation",
    "quality": "Quality",
    "cost": "Cost",
}
"""The same for the line of links, which has to fit a phone."""

SCRIPTS = ("cost.js", "compare.js")


class Pictures(Protocol):
    """Where images are stored: a result folder, or several."""

    def image_path(self, digest: str) -> Path:
        """Where the image with this hash is, whether or not it exists."""


def render(story: Report, pictures: Pictures) -> str:
    """The page as text. Pictures are read from `pictures`; one that is missing there is said to be."""

    def picture_uri(picture: Picture) -> str | None:
        return data_uri(pictures.image_path(picture.image)) if picture.image else None

    environment = Environment(
        loader=PackageLoader("kontext_fast.report", "template"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals.update(
        fmt=fmt,
        baseline=BASELINE,
        control=CONTROL,
        step_kinds=STEP_KINDS,
        picture_uri=picture_uri,
        chart_uri=chart_uri,
        plain=_plain,
        interactive_beside=_interactive_beside,
        crossing_words=crossing_words,
        question=story.costs.question,
        run_numbers=story.numbers,
        verdicts=story.verdicts,
    )
    script = "\n".join(
        files("kontext_fast.report").joinpath("template", name).read_text(encoding="utf-8") for name in SCRIPTS
    )
    return environment.get_template("page.html.j2").render(
        story=story,
        title=title(story.lead),
        takeaways=takeaways(story.lead, story.costs.question, story.verdicts),
        short=SHORT,
        sections=story.sections,
        headings={name: title for name, title in HEADINGS.items() if _has_something(name, story)},
        charts={name: [chart for chart in story.charts if chart.section == name] for name in HEADINGS},
        live=live_data(story),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        environment_facts=environment_facts(story.result.records),
    )


def _has_something(name: str, story: Report) -> bool:
    """Sections that are made of charts alone appear where there is such a chart, drawn or not."""
    return name not in ("sizes", "ablation") or any(chart.section == name for chart in story.charts)


def _plain(number: float) -> str:
    """As an input field holds it: 10000, not 10000.0."""
    return repr(int(number)) if number == int(number) else repr(number)


def _interactive_beside(chart: Path) -> str | None:
    """From `reports/` to the page that goes with a chart `visualizations/<folder>/<file>`; None where there is none."""
    page = chart.with_suffix(".html")
    return "/".join(("..", *page.parts[-3:])) if page.is_file() else None
