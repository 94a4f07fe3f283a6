"""Against the others, in as many rows as there are kinds of equal work."""

from __future__ import annotations

from collections.abc import Iterator

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.names import plain_name
from kontext_fast.analysis.rows import Row
from kontext_fast.analysis.tiers import Tier, tiers
from kontext_fast.records.names import is_peer
from kontext_fast.report.text.markup import Markdown, code_span, paragraphs, table
from kontext_fast.stats.intervals import Estimate
from tools.docs.doc_context import NOTHING, DocContext, unmeasured_peers

HEADER = ("equal work", "best rival", "ours")


def render(context: DocContext) -> Markdown:
    """Of each tier in which a rival was measured the fastest rival and our fastest preset; then every recipe that has
    no time: those that were refused or failed, and those that nobody ran on that card."""
    group = context.headline
    if group is None:
        return paragraphs([NOTHING])
    rows = [tuple(_cells(tier)) for tier in tiers(group.group) if tier.best_rival]
    status: dict[str, str] = {row.preset: row.status for row in group.rows if row.time is None and is_peer(row.preset)}
    reasons = status | dict.fromkeys(unmeasured_peers(group), fmt.NOT_MEASURED)
    not_timed = [Markdown("{} ({})").format(code_span(preset), reason) for preset, reason in reasons.items()]
    missing = Markdown("Not timed: {}.").format(Markdown(", ".join(not_timed))) if not_timed else None
    return paragraphs([table(HEADER, rows), missing])


def _cells(tier: Tier) -> Iterator[str]:
    rival = tier.best_rival
    assert rival is not None
    yield tier.name
    yield f"{plain_name(rival.preset)}: {_words(rival)}"
    ours = tier.ours[-1]
    yield Markdown("**{}: {}**").format(code_span(ours.preset), _words(ours))


def _words(row: Row) -> str:
    assert row.time is not None
    factor = f", {fmt.factor(row.factor)}" if row.factor else ""
    return f"{fmt.seconds(row.time.mean.value)}{factor}{_too_few(row.time.mean)}"


def _too_few(time: Estimate) -> str:
    """What says that nothing is claimed from a time."""
    if time.interval is not None:
        return ""
    return " (one process)" if time.n == 1 else f" ({time.n} runs, no interval)"
