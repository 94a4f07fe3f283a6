"""What the judge said, from the scores of records: acceptance is computed and never read."""

from __future__ import annotations

from kontext_fast.analysis.groups import groups
from kontext_fast.analysis.judge_scores import accepted_by_item, judgement_of
from kontext_fast.records.schema import Score
from tests.records.builder import judged, record, result, sample

GOOD, BAD = "0" * 64, "1" * 64


def test_output_is_accepted_if_done_and_kept() -> None:
    scores = judged("a", GOOD, done=True, kept=True) + judged("b", BAD, done=True, kept=False)
    samples = [sample("a", 1.0, images=[GOOD]), sample("b", 1.0, images=[BAD])]
    run = record("baseline", 0, samples, scores=scores)
    (group,) = groups(result([run]))
    assert accepted_by_item(group.runs) == {"a": 1.0, "b": 0.0}
    good, bad = judgement_of(run, "a", 0, GOOD), judgement_of(run, "b", 0, BAD)
    assert good is not None
    assert (good.done, good.kept, good.accepted, good.note) == (True, True, True, None)
    assert bad is not None
    assert (bad.done, bad.kept, bad.accepted, bad.note) == (True, False, False, "the circle is still red")
    assert judgement_of(run, "a", 1, GOOD) is None


def test_records_with_stored_acceptance_read_the_same() -> None:
    new = judged("a", GOOD, done=True, kept=False)
    old = (*new, Score(item="a", seed=0, image=GOOD, metric="judge_accepted", value=False, note=new[0].note))
    samples = [sample("a", 1.0, images=[GOOD]), sample("b", 1.0)]
    runs = [record("baseline", 0, samples, scores=scores) for scores in (new, old)]
    accepted = [accepted_by_item(group.runs) for run in runs for group in groups(result([run]))]
    assert accepted == [{"a": 0.0}, {"a": 0.0}]
    assert judgement_of(runs[0], "a", 0, GOOD) == judgement_of(runs[1], "a", 0, GOOD)


def test_missing_answer_leaves_acceptance_unknown() -> None:
    (done, _) = judged("a", GOOD, done=True, kept=True)
    run = record("baseline", 0, [sample("a", 1.0, images=[GOOD]), sample("b", 1.0)], scores=(done,))
    (group,) = groups(result([run]))
    assert accepted_by_item(group.runs) == {}
    judgement = judgement_of(run, "a", 0, GOOD)
    assert judgement is not None
    assert judgement.accepted is None
