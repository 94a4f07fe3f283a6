"""The presets: what each is, what it does to images, and what was measured of that."""

from __future__ import annotations

from collections.abc import Mapping

from kontext_fast.optimizations.base import Effect
from kontext_fast.optimizations.presets import PRESETS, Preset
from kontext_fast.report import format as write
from kontext_fast.report.documents import markdown as escaped
from kontext_fast.report.headline import Row
from kontext_fast.report.markdown import paragraphs, table
from kontext_fast.report.notes import group_name
from kontext_fast.report.site import Site
from kontext_fast.verify.evidence import findings

HEADER = ("preset", "what it is", "output", "as fast as baseline", "quality")


def render(site: Site) -> str:
    """One row per preset, measured or not."""
    rows = {row.preset: row for row in site.card.rows} if site.card else {}
    verdicts = _verdicts(site)
    return paragraphs(
        [
            table(HEADER, (_cells(preset, rows.get(preset.name), verdicts) for preset in PRESETS.values())),
            "Output: `exact` is bit-identical, `numeric` differs by rounding, `lossy` approximates. " + _where(site),
        ]
    )


def _cells(preset: Preset, row: Row | None, verdicts: Mapping[str, str]) -> tuple[str, ...]:
    return (
        f"`{preset.name}`",
        escaped(preset.summary),
        effect(preset).value,
        _factor(row),
        verdicts.get(preset.name, "reference" if not preset.optimizations else write.NOT_MEASURED),
    )


def effect(preset: Preset) -> Effect:
    """The strongest effect of its optimizations."""
    order = list(Effect)
    return max((one.effect for one in preset.optimizations), key=order.index, default=Effect.EXACT)


def _factor(row: Row | None) -> str:
    if row is None:
        return write.NOT_MEASURED
    if row.factor is None:
        return row.status if row.time is None else row.factor_note or ""
    return f"{write.factor(row.factor)} ({write.factor_range(row.factor) or 'no interval'})"


def _verdicts(site: Site) -> dict[str, str]:
    """By preset, from the newest verification that judged it."""
    found = {}
    for _, result in site.published.verifications:
        checkpoint = next((record.checkpoint.name for record in result.records if record.checkpoint), "no checkpoint")
        for one in findings(result).presets:
            level = one.verdict.level
            said = level.meaning if level.value == level.meaning else f"{level.value} {level.meaning}"
            found[one.preset] = f"{said} on {escaped(checkpoint)}"
    return found


def _where(site: Site) -> str:
    if site.card is None:
        return "Nothing was measured on a GPU."
    group = site.card.group
    checkpoint = f"{group.checkpoint.name} on " if group.checkpoint else ""
    return f"Factors: {escaped(group_name(group))}, {escaped(checkpoint + str(group.machine))}."
