"""What was measured and what was not, in a few lines."""

from __future__ import annotations

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.consistency import contradictions
from kontext_fast.records.names import is_peer, machine_name, short_machine
from kontext_fast.report.model import GroupReport
from kontext_fast.report.text.markup import Markdown, bullets, code_span, joined, paragraphs
from kontext_fast.report.verification import VerificationReport
from tools.docs.doc_context import NOTHING, DocContext, ran_on_gpu


def render(context: DocContext) -> Markdown:
    """Times with their card, day and processes; quality with its weights and items; what nobody measured."""
    group = context.headline
    if group is None:
        return paragraphs([NOTHING])
    runs = group.group.runs
    others = sorted(
        {short_machine(of.group.machine) for of in context.groups if of.group.machine and ran_on_gpu(of.group)}
        - {short_machine(group.group.machine or "")}
    )
    weights = group.group.checkpoint
    lines = [
        f"Times and memory: {group.title} on one {group.group.machine}, "
        f"{fmt.date_range(run.record.created_at for run in runs)}, {fmt.count(len(runs), 'process', 'processes')}"
        + (f"; less on {' and '.join(others)}" if others else "")
        + ".",
        "Weights: the full architecture with random weights, since the real ones are gated; speed does not depend on "
        "their values, images do."
        if weights and weights.random_weights
        else None,
        _quality(context.verification, group),
        Markdown(
            "Not measured: images of FLUX.1-Kontext-dev itself (`kontext verify` measures yours), consumer cards, "
            "AMD{}."
        ).format("" if _has_cold_rivals(context) else ", first images of other recipes with empty compile caches"),
        _doubts(context),
        "A number without an interval ran in fewer than three processes, and nothing is claimed from it.",
    ]
    return bullets(filter(None, lines))


def _doubts(context: DocContext) -> str | None:
    found = contradictions(context.report.analysis) if context.report else ()
    pairs = fmt.count(len(found), "pair")
    return f"Doubtful and not measured again: {pairs} of times that the report's checks name." if found else None


def _has_cold_rivals(context: DocContext) -> bool:
    return any(
        row.time is not None and is_peer(row.preset)
        for of in context.groups
        if of.group.compile_cache == "cold" and ran_on_gpu(of.group)
        for row in of.rows
    )


def _quality(verification: VerificationReport | None, group: GroupReport) -> Markdown:
    if verification is None:
        return Markdown("Images: not judged.")
    result = verification.result
    record = result.records[0] if result.records else None
    where = (machine_name(record.environment) if record else None) or "an unnamed machine"
    seeds = len(verification.analysis.verification.seeds)
    verified = verification.judged
    changed = [name for name, quality in group.quality.items() if name in verified and quality.verdict is None]
    since = Markdown(" Changed since then, and not judged again: {}.").format(joined(map(code_span, changed)))
    later = [
        Markdown(" {}: by a later verification of {} edits.").format(
            joined(code_span(preset.preset) for preset in newer.analysis.presets), len(newer.result.items)
        )
        for newer in verification.newer
    ]
    return Markdown(
        "Images: {} edits with {} seeds each, judged on the small trained checkpoint `tiny`, on {}.{}{}"
    ).format(len(result.items), seeds, where, Markdown("".join(later)), since if changed else "")
