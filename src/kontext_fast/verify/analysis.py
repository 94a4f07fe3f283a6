"""The analysis of a verification: from its records to verdicts, with scores paired by item and seed, never by order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from kontext_fast.errors import InvalidInput
from kontext_fast.metrics.base import Metric, Role, discover
from kontext_fast.records.schema import BASELINE, ArmRole, MetricFacts, Record, ResultFile, Verification
from kontext_fast.verify.comparisons import ByItem, FidelityDistances, QualityDifferences
from kontext_fast.verify.conditions import ConditionEvidence, condition_arm, coverage_sentence
from kontext_fast.verify.controls import RERUN, ControlCheck, insensitivity, sensitivity_checks
from kontext_fast.verify.converged import (
    DISTANCE,
    DISTANCE_IN_FLOAT32,
    REFERENCE_ERROR,
    ConvergedComparison,
    compare_with_converged,
)
from kontext_fast.verify.findings import Repeat
from kontext_fast.verify.margins import Margins
from kontext_fast.verify.pictures import DIRECTIONS, REPEAT, SEED_SPREAD, change_name
from kontext_fast.verify.verdict import Evidence, Level, QualityVerdict, decide

BETWEEN_SEEDS = " between seeds"
"""Suffix of the name of a score that compares two outputs of baseline for one item."""

ROUNDING = frozenset({"exact", "numeric"})
"""Effects of optimizations that change rounding at most."""

_Key = tuple[str, int]
"""Item and seed."""


@dataclass(frozen=True)
class PresetAnalysis:
    preset: str
    verdict: QualityVerdict
    evidence: Evidence | None
    """None where the preset has no output."""
    converged: ConvergedComparison | None = None
    """Beside the verdict, where the verification compared with the converged reference."""
    coverage: str = ""
    """How the preset was used, and how it was not, in which case it is not verified there."""


@dataclass(frozen=True)
class VerificationAnalysis:
    """Everything that a report of a verification says, computed from its records."""

    verification: Verification
    margins: Margins
    presets: tuple[PresetAnalysis, ...]
    fewer_steps: tuple[PresetAnalysis, ...]
    """Of baseline with fewer steps; empty without a frontier."""
    control_checks: tuple[ControlCheck, ...]
    insensitive: Mapping[str, str]
    """Metrics on which no verdict rests, and why."""
    metrics: tuple[MetricFacts, ...]


def analyze(result: ResultFile) -> VerificationAnalysis:
    """The verdicts of a verification. Raises InvalidInput for records of anything else."""
    verification = result.verification
    if verification is None:
        raise InvalidInput("These records are not of a verification; run `kontext verify` first.")
    margins = Margins.model_validate(verification.margins)
    arms = ArmScores(result.records)
    metrics = [metric for metric in discover().values() if arms.measured(metric.name)]
    checks = {
        metric.name: sensitivity_checks(
            metric,
            margins,
            fidelity=arms.fidelity(metric) if metric.role is Role.FIDELITY else None,
            distances={name: arms.distances(metric, name) for name in arms.controls},
            differences={name: arms.differences(metric, name) for name in (*arms.controls, *arms.floors)},
            inert=arms.inert_controls(),
        )
        for metric in metrics
    }
    insensitive = {
        metric: reason for metric, of_metric in checks.items() if (reason := insensitivity(of_metric)) is not None
    }

    def analyzed(record: Record) -> PresetAnalysis:
        if not any(output.image for output in record.outputs):
            failures = [output.failure for output in record.outputs if output.failure]
            reason = record.reason or (failures[0] if failures else "It made no output.")
            return PresetAnalysis(record.preset, QualityVerdict(Level.NOT_MEASURED, reason), None)
        evidence = arms.evidence(record.preset, metrics, insensitive)
        verdict = decide(evidence, margins)
        coverage = coverage_sentence(
            evidence.conditions, verification.batch, arms.has_order(record.preset), verdict.doubts
        )
        return PresetAnalysis(record.preset, verdict, evidence, arms.converged(record.preset), coverage)

    return VerificationAnalysis(
        verification=verification,
        margins=margins,
        presets=tuple(map(analyzed, arms.presets)),
        fewer_steps=tuple(map(analyzed, arms.fewer_steps)),
        control_checks=tuple(check for of_metric in checks.values() for check in of_metric),
        insensitive=insensitive,
        metrics=tuple(_with_missing_needs(facts, arms) for facts in verification.metrics),
    )


def _with_missing_needs(facts: MetricFacts, arms: ArmScores) -> MetricFacts:
    if facts.not_measured or arms.measured(facts.name) or arms.measured(facts.name + BETWEEN_SEEDS):
        return facts
    return facts.model_copy(update={"not_measured": "Not measured: no output came with what it needs."})


class ArmScores:
    """The arms of a verification with their scores."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records = {record.arm.name: record for record in records if record.arm is not None}
        self._scores = {name: _by_metric(record) for name, record in self._records.items()}
        self.presets = self._of_role("preset")
        self.fewer_steps = self._of_role("steps")
        self.controls = self._names_of_role("control")
        self.floors = self._names_of_role("floor")
        self.rerun = [record for record in self._of_role("floor") if record.preset == RERUN]
        self.baseline = next(iter(self._of_role("baseline")), None)

    def _names_of_role(self, role: ArmRole) -> list[str]:
        return [name for name, record in self._records.items() if record.arm and record.arm.role == role]

    def _of_role(self, role: ArmRole) -> list[Record]:
        return [self._records[name] for name in self._names_of_role(role)]

    def inert_controls(self) -> set[str]:
        """Controls all of whose outputs are baseline's, bit for bit."""
        baseline = _images(self.baseline)
        images = {name: _images(self._records[name]) for name in self.controls}
        return {
            name
            for name, of_control in images.items()
            if of_control and all(baseline.get(key) == image for key, image in of_control.items())
        }

    def measured(self, metric: str) -> bool:
        return any(scores.get(metric) for scores in self._scores.values())

    def scores(self, arm: str, metric: str) -> Mapping[_Key, float]:
        return self._scores.get(arm, {}).get(metric, {})

    def distances(self, metric: type[Metric], arm: str) -> ByItem:
        """Of an arm to baseline; empty for a quality metric."""
        if metric.role is not Role.FIDELITY:
            return {}
        return _by_item({key: metric.distance(score) for key, score in self.scores(arm, metric.name).items()})

    def differences(self, metric: type[Metric], arm: str) -> ByItem:
        """Scores of an arm minus those of baseline for the same item and seed; empty for a fidelity metric."""
        if metric.role is not Role.QUALITY:
            return {}
        baseline = self.scores(_arm_name(self.baseline), metric.name)
        scores = self.scores(arm, metric.name)
        return _by_item({key: scores[key] - baseline[key] for key in scores.keys() & baseline.keys()})

    def fidelity(self, metric: type[Metric], preset: str | None = None) -> FidelityDistances:
        """All distances of one metric; those of a preset are empty without one."""
        between_seeds = self.scores(_arm_name(self.baseline), metric.name + BETWEEN_SEEDS)
        reordered = _arm_name(self._reordered(preset))
        return FidelityDistances(
            metric=metric.name,
            to_baseline=self.distances(metric, preset) if preset else {},
            floors={name: self.distances(metric, name) for name in self.floors},
            between_seeds=_by_item({key: metric.distance(score) for key, score in between_seeds.items()}),
            reordered=self.distances(metric, reordered),
        )

    def has_order(self, preset: str) -> bool:
        """Whether the preset ran in another order, too."""
        return bool(_images(self._reordered(preset)))

    def _conditions(self, preset: str, metrics: Iterable[type[Metric]]) -> Iterator[ConditionEvidence]:
        """Of every condition under which both the preset and baseline made outputs, or why the preset did not."""
        for record in self._of_role("condition"):
            arm = record.arm
            if arm is None or arm.preset != preset or arm.condition is None:
                continue
            reference = condition_arm(BASELINE, arm.condition)
            baseline, images = _images(self._records.get(reference)), _images(record)
            failed = _failed(record) - _failed(self._records.get(reference))
            reasons = [output.failure for output in record.outputs if output.failure]
            yield ConditionEvidence(
                name=arm.condition,
                identical=_differ_by_seed(baseline)
                and baseline == images
                and all(error == 0 for error in self.scores(arm.name, "latent_error").values()),
                fidelity=tuple(
                    self._fidelity_in(arm.name, reference, metric, preset)
                    for metric in metrics
                    if metric.role is Role.FIDELITY
                ),
                failures=_items(failed, baseline),
                repeats=_repeats(record),
                not_run=None if images else record.reason or next(iter(reasons), "it made no output"),
            )

    def _fidelity_in(self, arm: str, reference: str, metric: type[Metric], preset: str) -> FidelityDistances:
        """Distances of `arm` of a condition; seed noise is that of baseline's arm there, where it has two seeds."""
        usual = self.fidelity(metric, preset)
        between_seeds = self.distances(metric, reference) or usual.between_seeds
        return replace(usual, to_baseline=self.distances(metric, arm), between_seeds=between_seeds)

    def _reordered(self, preset: str | None) -> Record | None:
        """The arm of `preset` with its requests in another order."""
        if preset is None:
            return None
        return next((record for record in self._of_role("order") if record.arm and record.arm.preset == preset), None)

    def converged(self, preset: str) -> ConvergedComparison | None:
        baseline = _arm_name(self.baseline)
        return compare_with_converged(
            self.scores(preset, DISTANCE),
            *(self.scores(baseline, name) for name in (DISTANCE, DISTANCE_IN_FLOAT32, REFERENCE_ERROR)),
        )

    def evidence(self, preset: str, metrics: Iterable[type[Metric]], insensitive: Mapping[str, str]) -> Evidence:
        metrics = list(metrics)
        record, reordered = self._records[preset], self._reordered(preset)
        images, baseline = _images(record), _images(self.baseline)
        failed = _failed(record)
        paired = images.keys() & baseline.keys()
        return Evidence(
            identical=bool(paired)
            and _differ_by_seed(baseline)
            and all(baseline[key] == images[key] for key in paired)
            and all(error == 0 for error in self.scores(preset, "latent_error").values()),
            fidelity=tuple(self.fidelity(metric, preset) for metric in metrics if metric.role is Role.FIDELITY),
            quality=tuple(
                QualityDifferences(metric.name, differences, metric.bounded)
                for metric in metrics
                if (differences := self.differences(metric, preset))
            ),
            failures=_items(failed - _failed(self.baseline), baseline),
            reordered_failures=_items(_failed(reordered) - failed, images),
            repeats=_repeats(record),
            conditions=tuple(self._conditions(preset, metrics)),
            seed_spreads=_by_item(self.scores(preset, SEED_SPREAD)),
            changes={
                direction: by_item
                for direction in DIRECTIONS
                if (by_item := _by_item(self.scores(preset, change_name(direction))))
            },
            declares_rounding=bool(record.plan) and all(applied.effect in ROUNDING for applied in record.plan),
            insensitive=insensitive,
        )


def _repeats(record: Record) -> tuple[Repeat, ...]:
    return tuple(
        Repeat(score.item, score.seed, score.note or "another picture")
        for score in record.scores
        if score.metric == REPEAT and score.value
    )


def _by_metric(record: Record) -> dict[str, dict[_Key, float]]:
    scores: dict[str, dict[_Key, float]] = defaultdict(dict)
    for score in record.scores:
        if score.value is not None:
            scores[score.metric][score.item, score.seed] = float(score.value)
    return dict(scores)


def _by_item(values: Mapping[_Key, float]) -> dict[str, list[float]]:
    by_item: dict[str, list[float]] = defaultdict(list)
    for item, seed in sorted(values):
        by_item[item].append(values[item, seed])
    return dict(by_item)


def _arm_name(record: Record | None) -> str:
    return record.arm.name if record and record.arm else ""


def _images(record: Record | None) -> dict[_Key, str]:
    outputs = record.outputs if record else ()
    return {(output.item, output.seed): output.image for output in outputs if output.image}


def _failed(record: Record | None) -> set[_Key]:
    """Outputs that failed, at the first attempt at least."""
    outputs = record.outputs if record else ()
    return {(output.item, output.seed) for output in outputs if output.failure or not output.image}


def _items(failed: Iterable[_Key], succeeded: Mapping[_Key, str]) -> tuple[str, ...]:
    """The items of `failed` outputs that are among those that succeeded elsewhere."""
    return tuple(sorted({item for item, seed in failed if (item, seed) in succeeded}))


def _differ_by_seed(images: Mapping[_Key, str]) -> bool:
    """Whether any item has different images for different seeds; a pipeline that ignores the seed shows nothing."""
    by_item: dict[str, set[str]] = defaultdict(set)
    for (item, _), image in images.items():
        by_item[item].add(image)
    return any(len(of_item) > 1 for of_item in by_item.values())
