"""From the records of a verification to what its verdicts rest on: scores paired by item and seed, never by order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kontext_fast.errors import InvalidInput
from kontext_fast.metrics.base import Metric, Role, discover
from kontext_fast.records.schema import MetricFacts, Record, ResultFile, Verification
from kontext_fast.verify.comparisons import ByItem, Fidelity, Quality
from kontext_fast.verify.controls import RERUN, Sighting, blindness, sightings
from kontext_fast.verify.margins import Margins
from kontext_fast.verify.verdict import Evidence, Level, Verdict, decide

BETWEEN_SEEDS = " between seeds"
"""Ends the name of a score that compares two outputs of baseline for one item."""


@dataclass(frozen=True)
class PresetVerdict:
    preset: str
    verdict: Verdict
    evidence: Evidence | None
    """None where the preset made no output."""


@dataclass(frozen=True)
class VerificationAnalysis:
    """Everything that a report of a verification says, computed from its records."""

    verification: Verification
    margins: Margins
    presets: tuple[PresetVerdict, ...]
    fewer_steps: tuple[PresetVerdict, ...]
    """Of baseline with fewer steps; empty without a frontier."""
    sightings: tuple[Sighting, ...]
    blind: Mapping[str, str]
    metrics: tuple[MetricFacts, ...]


def analyze(result: ResultFile) -> VerificationAnalysis:
    """The verdicts of a verification. Raises InvalidInput for records of anything else."""
    verification = result.verification
    if verification is None:
        raise InvalidInput("These records are not of a verification; run `kontext verify` first.")
    margins = Margins.model_validate(verification.margins)
    arms = Arms(result.records)
    metrics = [metric for metric in discover().values() if arms.measured(metric.name)]
    fidelity = {metric.name: arms.fidelity(metric) for metric in metrics if metric.role is Role.FIDELITY}
    found = [
        sightings(
            metric,
            margins,
            fidelity=fidelity.get(metric.name),
            distances={name: arms.distances(metric, name) for name in arms.controls},
            differences={name: arms.differences(metric, name) for name in (*arms.controls, *arms.floors)},
            idle=arms.idle_controls(),
        )
        for metric in metrics
    ]
    blind = {
        metric.name: reason
        for metric, seen in zip(metrics, found, strict=True)
        if (reason := blindness(seen)) is not None
    }
    return VerificationAnalysis(
        verification=verification,
        margins=margins,
        presets=tuple(_judged(arms, record, metrics, margins, blind) for record in arms.presets),
        fewer_steps=tuple(_judged(arms, record, metrics, margins, blind) for record in arms.fewer_steps),
        sightings=tuple(sighting for of_metric in found for sighting in of_metric),
        blind=blind,
        metrics=tuple(_as_it_was(facts, arms) for facts in verification.metrics),
    )


def _as_it_was(facts: MetricFacts, arms: Arms) -> MetricFacts:
    if facts.not_measured or arms.measured(facts.name) or arms.measured(facts.name + BETWEEN_SEEDS):
        return facts
    return facts.model_copy(update={"not_measured": "Not measured: no output came with what it needs."})


def _judged(
    arms: Arms, record: Record, metrics: Iterable[type[Metric]], margins: Margins, blind: Mapping[str, str]
) -> PresetVerdict:
    name = record.preset
    evidence = arms.evidence(name, metrics, blind)
    if not any(output.image for output in record.outputs):
        failures = [output.failure for output in record.outputs if output.failure]
        reason = record.reason or (failures[0] if failures else "It made no output.")
        return PresetVerdict(name, Verdict(Level.NOT_MEASURED, reason), None)
    return PresetVerdict(name, decide(evidence, margins), evidence)


class Arms:
    """The arms of a verification with their scores."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records = {record.arm.name: record for record in records if record.arm is not None}
        self._scores: dict[str, dict[str, dict[tuple[str, int], float]]] = {
            name: _by_metric(record) for name, record in self._records.items()
        }
        self.presets = self._of_role("preset")
        self.fewer_steps = self._of_role("steps")
        self.controls = [name for name, record in self._records.items() if record.arm and record.arm.role == "control"]
        self.floors = [name for name, record in self._records.items() if record.arm and record.arm.role == "floor"]
        self.repeated = [record for record in self._of_role("floor") if record.preset == RERUN]
        baselines = self._of_role("baseline")
        self.baseline = baselines[0] if baselines else None

    def _of_role(self, role: str) -> list[Record]:
        return [record for record in self._records.values() if record.arm and record.arm.role == role]

    def idle_controls(self) -> set[str]:
        """Controls all of whose outputs are baseline's, bit for bit."""
        baseline = _images(self.baseline)[0] if self.baseline else {}
        made = {name: _images(self._records[name])[0] for name in self.controls}
        return {
            name
            for name, images in made.items()
            if images and all(baseline.get(key) == image for key, image in images.items())
        }

    def measured(self, metric: str) -> bool:
        return any(scores.get(metric) for scores in self._scores.values())

    def scores(self, arm: str, metric: str) -> Mapping[tuple[str, int], float]:
        """By item and seed."""
        return self._scores.get(arm, {}).get(metric, {})

    def distances(self, metric: type[Metric], arm: str) -> ByItem:
        """Of an arm to baseline; empty for a metric of quality."""
        if metric.role is not Role.FIDELITY:
            return {}
        return _grouped({key: metric.distance(score) for key, score in self.scores(arm, metric.name).items()})

    def differences(self, metric: type[Metric], arm: str) -> ByItem:
        """Scores of an arm minus those of baseline for the same item and seed; empty for a metric of fidelity."""
        if metric.role is not Role.QUALITY or self.baseline is None or self.baseline.arm is None:
            return {}
        baseline = self.scores(self.baseline.arm.name, metric.name)
        of_arm = self.scores(arm, metric.name)
        return _grouped({key: of_arm[key] - baseline[key] for key in of_arm.keys() & baseline.keys()})

    def fidelity(self, metric: type[Metric], preset: str | None = None) -> Fidelity:
        """All distances of one metric; those of a preset are empty without one."""
        baseline = self.baseline.arm.name if self.baseline and self.baseline.arm else ""
        between = self.scores(baseline, metric.name + BETWEEN_SEEDS)
        reordered = self._reordered(preset)
        return Fidelity(
            metric=metric.name,
            to_baseline=self.distances(metric, preset) if preset else {},
            floors={name: self.distances(metric, name) for name in self.floors},
            between_seeds=_grouped({key: metric.distance(score) for key, score in between.items()}),
            reordered=self.distances(metric, reordered.arm.name) if reordered and reordered.arm else {},
        )

    def _reordered(self, preset: str | None) -> Record | None:
        """The arm of `preset` with its requests in another order."""
        found = (record for record in self._of_role("order") if record.arm and record.arm.preset == preset)
        return next(found, None) if preset else None

    def evidence(self, preset: str, metrics: Iterable[type[Metric]], blind: Mapping[str, str]) -> Evidence:
        metrics = list(metrics)
        made, failed = _images(self._records[preset])
        baseline, failed_too = _images(self.baseline) if self.baseline else ({}, set())
        paired = made.keys() & baseline.keys()
        latents = self.scores(preset, "latent_error")
        reordered = self._reordered(preset)
        _, failed_reordered = _images(reordered) if reordered else ({}, set())
        return Evidence(
            identical=bool(paired)
            and _differ_by_seed(baseline)
            and all(baseline[key] == made[key] for key in paired)
            and all(error == 0 for error in latents.values()),
            fidelity=tuple(self.fidelity(metric, preset) for metric in metrics if metric.role is Role.FIDELITY),
            quality=tuple(
                Quality(metric.name, differences, metric.bounded)
                for metric in metrics
                if metric.role is Role.QUALITY and (differences := self.differences(metric, preset))
            ),
            failures=tuple(sorted({item for item, seed in failed - failed_too if (item, seed) in baseline})),
            reordered_failures=tuple(
                sorted({item for item, seed in failed_reordered - failed if (item, seed) in made})
            ),
            blind=blind,
        )


def _by_metric(record: Record) -> dict[str, dict[tuple[str, int], float]]:
    found: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
    for score in record.scores:
        if score.value is not None:
            found[score.metric][score.item, score.seed] = float(score.value)
    return dict(found)


def _grouped(values: Mapping[tuple[str, int], float]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for item, seed in sorted(values):
        found[item].append(values[item, seed])
    return dict(found)


def _images(record: Record) -> tuple[dict[tuple[str, int], str], set[tuple[str, int]]]:
    """Images by item and seed, and the items and seeds that failed, at the first attempt at least."""
    made = {(output.item, output.seed): output.image for output in record.outputs if output.image}
    return made, {(output.item, output.seed) for output in record.outputs if output.failure or not output.image}


def _differ_by_seed(images: Mapping[tuple[str, int], str]) -> bool:
    """Whether any item came out differently with another seed: a pipeline that always draws the same proves nothing."""
    by_item: dict[str, set[str]] = defaultdict(set)
    for (item, _), image in images.items():
        by_item[item].add(image)
    return any(len(of_item) > 1 for of_item in by_item.values())
