"""Which preset to take: five rows, with what each costs in seconds, memory and images."""

from __future__ import annotations

from dataclasses import dataclass

from kontext_fast.analysis import format as fmt
from kontext_fast.records.names import short_machine
from kontext_fast.report.model import GroupReport
from kontext_fast.report.text.markup import Markdown, code_span, paragraphs, table
from tools.docs.doc_context import DocContext
from tools.docs.presets_table import measured_without

HEADER = ("I want", "preset", "seconds", "factor", "GPU memory", "what changes in the images")


@dataclass(frozen=True)
class Want:
    words: str
    preset: str
    changes: str
    """Where no verdict says more."""


WANTS = (
    Want("every step, in 16 bit", "faithful", "rounding only"),
    Want("every step, in 8 bit", "balanced", "8-bit rounding"),
    Want("a good deal faster", "fast", "steps are skipped"),
    Want("the fastest", "turbo", "more steps are skipped"),
    Want("a 24 GB card", "low_memory", "as balanced"),
)
CARD_STAGE = "second edit"
"""Of the check of `low_memory` under its cap."""


def render(context: DocContext) -> Markdown:
    """Times of the headline; `low_memory` has its own check, which ran under a cap of memory."""
    group = context.headline
    rows = [_of_card(want, context) if want.preset == "low_memory" else _of_group(want, group) for want in WANTS]
    return paragraphs([table(HEADER, rows), _notes(group)])


def _of_group(want: Want, group: GroupReport | None) -> tuple[str, ...]:
    row = group.group.row(want.preset) if group else None
    if group is None or row is None or row.time is None:
        return (want.words, code_span(want.preset), fmt.NOT_MEASURED, "", "", want.changes)
    verdict = group.quality[want.preset].verdict
    steps = row.computed_steps
    skipped = f", {fmt.computed_steps(steps)} steps computed" if steps and steps.mean < steps.total else ""
    return (
        want.words,
        code_span(want.preset),
        fmt.seconds(row.time.mean.value),
        fmt.factor(row.factor) if row.factor else "",
        fmt.peak_memory(row.memory),
        (f"{verdict.words}{skipped}" if verdict else f"{want.changes}{skipped}"),
    )


def _of_card(want: Want, context: DocContext) -> tuple[str, ...]:
    stored = next((report for _, report in context.stored("low_memory.json")), None)
    if stored is None:
        return (want.words, code_span(want.preset), fmt.NOT_MEASURED, "", "", want.changes)
    stage = stored[CARD_STAGE]
    seconds, gib = fmt.seconds(stage["seconds"]), stage["in_use_on_the_gpu_gib"]
    return (
        want.words,
        code_span(want.preset),
        Markdown("{} <sup>1</sup>").format(seconds),
        "",
        f"{gib:.1f} GiB",
        want.changes,
    )


def _notes(group: GroupReport | None) -> Markdown | None:
    if group is None or group.group.machine is None:
        return None
    where = f"{group.title}, one image a call, on one {short_machine(group.group.machine)}"
    without = measured_without(group.group, [want.preset for want in WANTS])
    return Markdown(
        "{}; memory is that of the whole process. <sup>1</sup> The same edit under a cap of memory, timed once.{}"
    ).format(where, Markdown("".join(f" {sentence}" for sentence in without)))
