"""Peers in a report: rows beside ours, never our headline, and never priced as if they were ours."""

from __future__ import annotations

from kontext_fast.analysis.groups import groups
from kontext_fast.analysis.rows import headline
from kontext_fast.cost.headline_comparison import HeadlineComparison
from kontext_fast.records.schema import Cell, Record
from kontext_fast.report.charts.benchmark import like_for_like
from kontext_fast.report.text.phrases import fastest, speed_finding
from tests.records.builder import record, result, sample, timed, workload
from tests.report.reports import report_of

ASKED = Cell(mode="edit", size="128x128", steps=4, batch=1)
CARD = {"gpu": {"name": "NVIDIA H200", "uuid_sha256": "0" * 64}}


def run(preset: str, round_: int, wall: float, *, steps: int = 4, labels: tuple[str, ...] = ()) -> Record:
    samples = [sample(item, wall + 0.001 * round_, steps=steps) for item in "ab"]
    made = record(
        preset, round_, samples, of=workload(steps=steps), cells=(ASKED,), labels=labels, environment=CARD
    )  # fmt: skip
    (measurement,) = made.measurements
    return made.model_copy(update={"measurements": (measurement.model_copy(update={"cell": ASKED}),)})


def bench(**walls: float) -> list[Record]:
    return [run(name.replace("_", ":"), round_, wall) for round_ in range(3) for name, wall in walls.items()]


def test_fewer_steps_are_grouped_with_full_runs() -> None:
    label = "runs 2 steps where 4 are asked for"
    fewer = [run("peer:steps-2", round_, 0.5, steps=2, labels=(label,)) for round_ in range(3)]
    (group,) = groups(result([*bench(baseline=1.0), *fewer]))
    assert group.workload is not None
    assert group.workload.steps == 4
    row = headline(group)[1]
    assert (row.preset, row.labels) == ("peer:steps-2", (label,))
    assert row.factor is not None
    assert 1.9 < row.factor.value < 2.1
    assert row.computed_steps is not None
    assert (row.computed_steps.high, row.computed_steps.total) == (2, 2)


def test_record_without_cell_is_grouped_by_steps_run() -> None:
    runs = [timed("baseline", 0, [1.0, 1.0]), timed("peer:steps-2", 0, [0.5, 0.5], of=workload(steps=2))]
    assert len(groups(result(runs))) == 2


def test_faster_peer_is_named_but_does_not_lead() -> None:
    (group,) = groups(result(bench(baseline=1.0, fast=0.5, peer_magcache=0.25, peer_compiled=0.8)))
    rows = headline(group)
    best = fastest(rows, None)
    assert best is not None
    assert best.preset == "fast"
    finding = speed_finding(rows)
    assert finding.startswith("fast is 1.99")
    assert "The fastest peer is peer:magcache: 3.9" in finding


def test_peer_of_two_rounds_is_named_without_a_claim() -> None:
    twice = [run("peer:magcache", round_, 0.25) for round_ in range(2)]
    (group,) = groups(result([*bench(baseline=1.0, fast=0.5), *twice]))
    finding = speed_finding(headline(group))
    assert finding.startswith("fast is 1.99")
    assert "nothing is claimed of them; the shortest time is that of peer:magcache: 3.99x as fast" in finding
    assert "95 % interval" not in finding.split("peer:magcache")[1]
    assert "The fastest peer" not in finding


def test_like_for_like_claims_nothing_of_two_processes() -> None:
    def words(rounds: int) -> tuple[str, list[str]]:
        peer = [run("peer:compiled", round_, 0.8) for round_ in range(rounds)]
        runs = [*bench(baseline=1.0, fast=0.5), *peer]
        # Without a plan they are exact, so that they are compared as those that compute all steps.
        report = report_of(result([of.model_copy(update={"plan": ()}) for of in runs]))
        panel = like_for_like.plotted(report)
        assert panel is not None
        return like_for_like.headline(report, panel), [like_for_like.shown_name(row) for row in panel.rows]

    finding, names = words(2)
    assert finding.endswith("the times of other recipes have no interval, so nothing is claimed against them.")
    assert [name for name in names if name.endswith("*")] == ["torch.compile*"]
    finding, names = words(3)
    assert "fast is ahead of the fastest other recipe" in finding
    assert not any(name.endswith("*") for name in names)


def test_peer_does_not_lead_when_our_preset_is_not_faster() -> None:
    (group,) = groups(result(bench(baseline=1.0, fast=1.0, peer_magcache=0.25)))
    assert fastest(headline(group), None) is None
    finding = speed_finding(headline(group))
    assert finding.startswith("No preset is faster")
    assert "The fastest peer is peer:magcache" in finding


def test_best_peer_leads_when_no_preset_ran() -> None:
    (group,) = groups(result(bench(baseline=1.0, peer_magcache=0.25)))
    finding = speed_finding(headline(group))
    assert finding.startswith("peer:magcache is 3.9")
    assert finding.count("peer:magcache") == 1


def test_cost_charts_use_our_cheapest_preset() -> None:
    priced = report_of(result(bench(baseline=1.0, fast=0.5, peer_magcache=0.25))).comparison
    assert isinstance(priced, HeadlineComparison)
    assert priced.other.row.preset == "fast"
    alone = report_of(result(bench(baseline=1.0, peer_magcache=0.25))).comparison
    assert isinstance(alone, HeadlineComparison)
    assert alone.other.row.preset == "peer:magcache"
