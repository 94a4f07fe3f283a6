"""The table of presets for the documentation, in Markdown, rendered from a verification and a benchmark. Pure.

A verdict or a speed of a preset that has changed since it was measured, in parameters or in a technique's code, is not
shown: it is not measured.
What is exact decides no image, so a verdict is that of every plan that differs in such techniques alone; a time is
shown with those that a preset has on CUDA today and did not have when it was measured, which only take time away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.rows import Row
from kontext_fast.optimizations.base import Effect, Optimization
from kontext_fast.optimizations.presets import PRESETS, Preset
from kontext_fast.records.names import machine_name
from kontext_fast.records.schema import (
    BASELINE,
    EMULATED,
    AppliedOptimization,
    Record,
    deciding_images,
)
from kontext_fast.report.text.markup import Markdown, bullets, code_span, joined, paragraphs, table
from kontext_fast.report.text.quality import level_name
from kontext_fast.report.verification import VerificationReport
from kontext_fast.verify.analysis import PresetAnalysis

SHOWN = ("faithful", "balanced", "fast", "turbo", "classic")
"""Presets that are a choice of several techniques, and what was measured besides after them."""
ON_YOUR_WEIGHTS = Markdown(
    "`tiny` is a small model of a synthetic world of shapes; what a preset costs is a property of the weights. "
    "On your weights: run `kontext verify`."
)
CHANGED = "not measured: it has changed since"
_STRENGTH = (Effect.EXACT, Effect.NUMERIC, Effect.LOSSY)


def presets_table(verification: VerificationReport | None, benchmark: Sequence[AnalyzedGroup]) -> Markdown:
    """The table as Markdown, with where its numbers come from and the reasons of verdicts below it.

    `benchmark` is empty where no speed was measured.
    """
    group = _reference_group(benchmark)
    rows = {row.preset: row for row in group.rows} if group else {}
    verdicts = verification.judged if verification else {}
    names = [*SHOWN, *(name for name in (*verdicts, *rows) if name in PRESETS and name not in (*SHOWN, BASELINE))]
    records = verification.result.records if verification else ()
    checkpoints = [record.checkpoint.name for record in records if record.checkpoint]
    card = (group.machine if group else None) or "the reference card"
    verdict_on = Markdown("verdict on {}").format(code_span(next(iter(checkpoints), "tiny")))
    header = ("preset", "what it does", "effect", verdict_on, f"speed on {card}")
    cells = (
        (
            code_span(name),
            PRESETS[name].summary,
            _effect(PRESETS[name].optimizations),
            _verdict(PRESETS[name], *verdicts.get(name, (None, None))),
            _speed(PRESETS[name], rows.get(name), group),
        )
        for name in dict.fromkeys(names)
    )
    facts = [*_of_verdicts(verification), *_of_speed(group, rows)]
    return paragraphs([table(header, cells), ON_YOUR_WEIGHTS, bullets(facts)])


def _effect(optimizations: Sequence[Optimization]) -> str:
    return max((optimization.effect for optimization in optimizations), key=_STRENGTH.index, default=Effect.EXACT).value


def _verdict(preset: Preset, judged: PresetAnalysis | None, of: VerificationReport | None) -> str:
    if judged is None or of is None:
        return fmt.NOT_MEASURED
    record = of.record_of(preset.name)
    if not _is_current(preset, record):
        return CHANGED
    emulated = Markdown(" (fp8 emulated: same rounding, no speed)" if EMULATED in record.labels else "")
    usual = judged.verdict.usual_level
    where = Markdown(f" with {judged.verdict.lost_in}, else {level_name(usual)}" if usual else "")
    return Markdown("**{}**{}{}").format(level_name(judged.verdict.level), where, emulated)


def _speed(preset: Preset, row: Row | None, group: AnalyzedGroup | None) -> str:
    if row is None or group is None:
        return fmt.NOT_MEASURED
    missing = [missing_then(preset, run.record) for run in group.runs_of(preset.name)]
    if None in missing:
        return CHANGED
    if row.time is None:
        return f"{row.status}: {row.reason or ''}"
    if row.factor is None:
        return f"{fmt.NOT_MEASURED}: {row.factor_note}"
    spread = fmt.factor_range(row.factor)
    return f"{fmt.factor(row.factor)}" + (f" ({spread})" if spread else " (no interval)")


def _is_current(preset: Preset, record: Record) -> bool:
    """Whether what decided the images of `record` does so today; one without a plan (refused) says nothing else."""
    return not record.plan or any(
        _differences(variant, deciding_images(record.plan)) == set() for variant in _variants(preset, deciding=True)
    )


def missing_then(preset: Preset, record: Record) -> list[str] | None:
    """Which techniques the time in `record` was measured without, of those that `preset` has on CUDA today; None where
    anything else has changed, so that it is no time of the preset."""
    if not record.plan:
        return []
    added = preset.on_cuda if record.environment.get("gpu") else ()
    lacking = {part.name for part in added} - {applied.name for applied in record.plan}
    for variant in _variants(preset, deciding=False):
        if _differences((*variant, *added), record.plan) == lacking:
            return [part.name for part in added if part.name in lacking]
    return None


def _variants(preset: Preset, *, deciding: bool) -> list[tuple[Optimization, ...]]:
    """The preset on all weights and on random ones; of both what decides images, or all."""
    variants = (preset.optimizations, preset.on_random)
    return [
        tuple(part for part in variant if not deciding or part.effect is not Effect.EXACT)
        for variant in variants
        if variant is not None
    ]


def _differences(today: Iterable[Optimization], ran: Iterable[AppliedOptimization]) -> set[str]:
    """Names of techniques that are in one of both alone, or with other parameters or of another revision."""
    stored = {applied.name: applied for applied in ran}
    known = {optimization.name: optimization for optimization in today}
    alike = {
        name
        for name in known.keys() & stored.keys()
        if known[name].revision == stored[name].revision
        and known[name].is_what_ran(stored[name].model_dump(mode="json")["parameters"])
    }
    return (known.keys() | stored.keys()) - alike


def _reference_group(groups: Sequence[AnalyzedGroup]) -> AnalyzedGroup | None:
    """Edits of the largest checkpoint, at the most work, with the most presets."""

    def rank(group: AnalyzedGroup) -> tuple[int, int, int]:
        assert group.checkpoint is not None
        assert group.workload is not None
        work = (group.workload.image_tokens + group.workload.reference_tokens) * group.workload.steps
        return group.checkpoint.transformer_parameters, len({run.record.preset for run in group.runs}), work

    edits = [group for group in groups if group.workload and group.checkpoint and group.workload.mode == "edit"]
    return max((group for group in edits if group.runs_of(BASELINE)), key=rank, default=None)


def _of_verdicts(report: VerificationReport | None) -> Iterator[str]:
    if report is None or not report.result.records:
        yield f"Verdicts: {fmt.NOT_MEASURED}."
        return
    for of in (report, *report.newer):
        yield from _of_verification(of, None if of is report else [preset.preset for preset in of.analysis.presets])
    for name, (preset, of) in report.judged.items():
        if name in PRESETS and _is_current(PRESETS[name], of.record_of(name)):
            yield Markdown("{}: {}").format(code_span(name), preset.verdict.reason)


def _of_verification(report: VerificationReport, presets: Sequence[str] | None) -> Iterator[str]:
    """What verdicts are of: those of `presets`, or without these of all others."""
    record, verification = report.result.records[0], report.analysis.verification
    whose = Markdown("Verdicts") if presets is None else Markdown("That of {}").format(joined(map(code_span, presets)))
    where = (
        f"{fmt.count(len(report.result.items), 'item')} of {verification.dataset}, "
        f"{fmt.count(len(verification.seeds), 'seed')} each, {verification.steps} steps, on "
        f"{machine_name(record.environment) or 'an unnamed machine'}, {fmt.date(record.created_at)}"
    )
    yield Markdown("{}: {}, margins sha256 {}.").format(whose, where, code_span(verification.margins_sha256[:12]))
    if insensitive := report.analysis.insensitive:
        yield f"Insensitive there, so that no verdict rests on them: {', '.join(sorted(insensitive))}."


def _of_speed(group: AnalyzedGroup | None, rows: dict[str, Row]) -> Iterator[str]:
    if group is None or group.workload is None or group.checkpoint is None:
        yield f"Speed: {fmt.NOT_MEASURED}."
        return
    workload = group.workload
    where = (
        f"{workload.steps} steps, batch {workload.batch}, on {group.machine or 'an unnamed machine'}, "
        f"{fmt.date_range(run.record.created_at for run in group.runs)}"
    )
    yield Markdown(
        "Speed: baseline's time over the preset's, 95 % interval over rounds, or over cards where three ran; edits of "
        "{}x{} by {}, {}."
    ).format(workload.width, workload.height, code_span(group.checkpoint.name), where)
    yield from measured_without(group, [name for name, row in rows.items() if row.factor is not None])
    labels = dict.fromkeys(label for name, row in rows.items() if name in PRESETS for label in row.labels)
    yield from (f"{label[0].upper()}{label[1:]}." for label in labels if label != EMULATED)


def measured_without(group: AnalyzedGroup, names: Sequence[str]) -> Iterator[Markdown]:
    """One sentence per set of techniques that the presets among `names` have on CUDA today and were timed without."""
    presets: dict[tuple[str, ...], list[str]] = {}
    for name in (name for name in names if name in PRESETS):
        runs = (missing_then(PRESETS[name], run.record) or () for run in group.runs_of(name))
        if without := tuple(dict.fromkeys(technique for missing in runs for technique in missing)):
            presets.setdefault(without, []).append(name)
    for without, measured in presets.items():
        yield Markdown("Measured without {}, which on CUDA only take time away: {}.").format(
            joined(map(code_span, without)), joined(map(code_span, measured))
        )
