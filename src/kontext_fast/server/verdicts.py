"""What is known of the images of each preset: verdicts of `kontext verify`, and whether they are of what runs here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kontext_fast.records.schema import BASELINE, AppliedOptimization, Checkpoint, deciding_images
from kontext_fast.server.contract import Verdict
from kontext_fast.server.jobs import ServiceFacts

if TYPE_CHECKING:
    from kontext_fast.report.verification import VerdictSummary

NOT_VERIFIED = "not verified on this checkpoint"


@dataclass(frozen=True)
class _Verified:
    """A verdict, and the weights and optimizations that it holds for."""

    summary: VerdictSummary
    checkpoint: Checkpoint
    plan: tuple[AppliedOptimization, ...]


class KnownVerdicts:
    """The verdicts of any number of verifications."""

    def __init__(self, by_preset: Mapping[str, Sequence[_Verified]] | None = None) -> None:
        self._by_preset = by_preset or {}

    @classmethod
    def read(cls, folders: Sequence[Path]) -> KnownVerdicts:
        """Read the folders that `kontext verify` wrote. Raises InvalidInput for records of anything else."""
        from kontext_fast.records.store import ResultStore
        from kontext_fast.report.verification import build_verification_report, verdicts_of

        by_preset: dict[str, list[_Verified]] = {}
        for folder in folders:
            report = build_verification_report(ResultStore.find(folder).load())
            summaries = verdicts_of(report)
            for record in report.result.records:
                if record.arm is None or record.arm.role != "preset" or record.checkpoint is None:
                    continue
                verdict = _Verified(summaries[record.preset], record.checkpoint, record.plan)
                by_preset.setdefault(record.preset, []).append(verdict)
        return cls(by_preset)

    def of(self, preset: str, facts: ServiceFacts, *, lora: str | None = None) -> Verdict:
        """The verdict on `preset` as this server runs it."""
        if preset == BASELINE and lora is None:
            sentence = "This is the reference that verdicts compare with."
            return Verdict(level=None, checkpoint=None, verified_here=True, sentence=sentence)
        verified = self._by_preset.get(preset, ())
        plan = next(known.optimizations for known in facts.presets if known.name == preset)
        here = next((verdict for verdict in verified if _same(verdict, facts.checkpoint, plan)), None)
        if here is not None and lora is None:
            sentence = f"{here.summary.name}, {here.summary.where}."
            return Verdict(
                level=here.summary.level, checkpoint=here.summary.checkpoint, verified_here=True, sentence=sentence
            )
        if not verified:
            return Verdict(level=None, checkpoint=None, verified_here=False, sentence=f"{_capital(NOT_VERIFIED)}.")
        other = verified[0].summary
        what = "not verified with this LoRA" if lora is not None else NOT_VERIFIED
        sentence = f"{_capital(what)}; on {other.checkpoint}: {other.name}, {other.items} items."
        return Verdict(level=other.level, checkpoint=other.checkpoint, verified_here=False, sentence=sentence)


def _same(verdict: _Verified, checkpoint: Checkpoint, plan: tuple[AppliedOptimization, ...]) -> bool:
    """Whether it is of these weights and of what decides images in `plan`, with these parameters."""
    same_weights = (
        checkpoint.weights_sha256 is not None and checkpoint.weights_sha256 == verdict.checkpoint.weights_sha256
    )
    return same_weights and deciding_images(verdict.plan) == deciding_images(plan)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
