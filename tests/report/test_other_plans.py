"""A preset whose plan was changed is another configuration under the same name: its runs are named, never averaged."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kontext_fast.analysis.benchmark import analyze_benchmark
from kontext_fast.analysis.groups import Plan, groups
from kontext_fast.analysis.rows import headline
from kontext_fast.records.schema import AppliedOptimization, Record
from kontext_fast.report.model import build_report
from kontext_fast.report.output.terminal import print_headline
from kontext_fast.report.text.phrases import checks, of_other_plans, plan_difference
from tests.records.builder import record, result, timed
from tests.tools.project_records import CARD
from tools.docs.blocks import headline as headline_block
from tools.docs.doc_context import DocContext
from tools.docs.result_tree import find_published


def plan(**parameters: Any) -> Plan:
    return (AppliedOptimization(name="cache", effect="lossy", parameters=parameters),)


OLD, NEW = plan(threshold=0.5), plan(threshold=0.25)
HUNG = "It did not end."
DIFFERENCE = "cache.threshold=0.5 instead of 0.25"


def changed() -> list[Record]:
    """A cache that was measured twice and hung once, was changed, and was measured twice and crashed once."""
    return [
        timed("baseline", 0, [4.0, 4.0], order=0),
        timed("cache", 0, [9.0, 9.0], order=1, plan=OLD),
        timed("baseline", 1, [4.0, 4.0], order=2),
        timed("cache", 1, [8.0, 8.0], order=3, plan=OLD),
        record("cache", 2, status="timeout", reason=HUNG, order=4, plan=OLD),
        timed("baseline", 3, [4.0, 4.0], order=5),
        timed("cache", 3, [1.0, 1.0], order=6, plan=NEW),
        timed("baseline", 4, [4.0, 4.0], order=7),
        timed("cache", 4, [1.0, 1.0], order=8, plan=NEW),
        record("cache", 5, status="crash", reason="It fell over.", order=9, plan=NEW),
        # It ended before it had a plan, so nobody knows that it had another one.
        record("cache", 6, status="oom", reason="Too little memory.", order=10, plan=()),
    ]


def test_only_the_last_measured_plan_counts() -> None:
    (group,) = groups(result(changed()))
    _, cache = headline(group)
    assert cache.time is not None
    assert cache.time.values == (1.0, 1.0)
    assert cache.factor is not None
    assert (cache.factor.value, cache.factor.n) == (pytest.approx(4.0), 2)
    assert [failure.status for failure in cache.failures] == ["crash", "oom"]
    assert [one.order for one in group.of_other_plans] == [1, 3, 4]


def test_newer_plan_without_times_does_not_count() -> None:
    hung = record("cache", 7, status="timeout", reason=HUNG, order=11, plan=plan(threshold=0.125))
    (group,) = groups(result([*changed(), hung]))
    _, cache = headline(group)
    assert cache.time is not None
    assert cache.time.values == (1.0, 1.0)
    assert "cache.threshold=0.125 instead of 0.25): cache (1 timeout)." in of_other_plans(group)[1]


def test_runs_of_the_same_plan_stay_together() -> None:
    (group,) = groups(result([one.model_copy(update={"plan": one.plan and NEW}) for one in changed()]))
    assert group.of_other_plans == ()
    assert of_other_plans(group) == ()
    assert len(group.runs_of("cache")) == 4


def test_runs_of_another_plan_are_named_in_every_output(tmp_path: Path) -> None:
    runs = "cache (2 ok), cache (1 timeout)"
    sentence = f"Excluded, since they ran another version of the recipe ({DIFFERENCE}): {runs}."
    (group,) = analyze_benchmark(result(changed()))
    assert of_other_plans(group) == (sentence,)
    assert sentence in checks(group)
    text = io.StringIO()
    print_headline([group], Console(file=text, width=80, highlight=False))
    assert sentence in " ".join(text.getvalue().split())
    on_a_card = [one.model_copy(update={"environment": CARD}) for one in changed()]
    report = build_report(result(on_a_card))
    block = headline_block.render(DocContext(find_published(tmp_path), report))
    assert f"- {sentence}" in block
    assert "- `cache`: 1 further run, crash. It fell over." in block
    assert HUNG not in block


@pytest.mark.parametrize(
    ("own", "counted", "words"),
    [
        (
            plan(threshold=1),
            plan(threshold=2, order=True),
            "cache.threshold=1 instead of 2; cache.order=unset instead of true",
        ),
        ((plan()[0].model_copy(update={"revision": 2}),), plan(), "revision 2 of cache instead of 1"),
        (plan(), (), "with cache"),
        ((), plan(), "without cache"),
        ((*plan(), AppliedOptimization(name="vae", effect="numeric")), plan(), "with vae"),
    ],
)
def test_plan_difference_names_technique_and_parameter(own: Plan, counted: Plan, words: str) -> None:
    assert plan_difference(own, counted) == words


def test_plan_difference_reports_order() -> None:
    both = (*plan(), AppliedOptimization(name="vae", effect="numeric"))
    assert plan_difference(both, both[::-1]) == "in another order"
