"""What a reader is told first, in one sentence with the numbers of the headline."""

from __future__ import annotations

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.rows import Row
from kontext_fast.records.names import short_machine
from kontext_fast.records.schema import BASELINE
from kontext_fast.report.text.answers import fastest_with_all_steps
from kontext_fast.report.text.markup import Markdown, paragraphs
from tools.docs.doc_context import NOTHING, DocContext

PROMISE = (
    "two lines on your own diffusers pipeline, reverted bit for bit, nothing to compile, and a test that can tell you "
    "that your images got worse"
)


def render(context: DocContext) -> Markdown:
    """Seconds of the fastest preset that may be called faster, and of the fastest one that computes every step."""
    group = context.headline
    if group is None:
        return paragraphs([NOTHING])
    baseline, best = group.group.row(BASELINE), group.best
    if best is None or best.time is None or baseline is None or baseline.time is None:
        words = Markdown("**FLUX.1-Kontext edits: {}.** No preset can be called faster than baseline yet.")
        return words.format(PROMISE)
    machine = short_machine(group.group.machine or "this machine")
    whole = fastest_with_all_steps(group)
    full = f", and in {_seconds(whole)} with every step computed" if whole and whole is not best else ""
    times = f"{_seconds(best)} instead of {_seconds(baseline)} on one {machine}{full}"
    return Markdown("**FLUX.1-Kontext edits in {}: {}.**").format(times, PROMISE)


def _seconds(row: Row) -> str:
    assert row.time is not None
    return fmt.seconds(row.time.mean.value)
