"""What was measured: images that were judged before a preset's code changed are not those of today."""

from __future__ import annotations

from pathlib import Path

import pytest

from kontext_fast.records.schema import AppliedOptimization
from kontext_fast.report.model import build_report
from kontext_fast.report.verification import VerificationReport, build_verification_report
from tests.records.builder import result, timed
from tests.tools.project_records import CARD
from tests.verify.synthetic_results import untouched, verification
from tools.docs.blocks import measured
from tools.docs.doc_context import DocContext
from tools.docs.result_tree import find_published


def plan(revision: int) -> tuple[AppliedOptimization, ...]:
    return (AppliedOptimization(name="classic", effect="lossy", revision=revision),)


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> VerificationReport:
    """Of the first revision of `classic`."""
    store = verification(tmp_path_factory.mktemp("quality"), {"classic": untouched}, items=8, control_items=8)
    judged = store.load()
    records = [
        record.model_copy(update={"plan": plan(1)}) if record.preset == "classic" else record
        for record in judged.records
    ]
    return build_verification_report(judged.model_copy(update={"records": tuple(records)}))


@pytest.mark.parametrize(("timed_revision", "changed"), [(1, False), (2, True)])
def test_preset_that_changed_since_it_was_judged_is_named(
    verified: VerificationReport, tmp_path: Path, timed_revision: int, changed: bool
) -> None:
    times = [timed("baseline", 0, [2.0, 2.0]), timed("classic", 0, [1.0, 1.0], plan=plan(timed_revision))]
    on_a_card = [record.model_copy(update={"environment": CARD}) for record in times]
    report = build_report(result(on_a_card), verified=verified)
    context = DocContext(find_published(tmp_path / "nothing"), report, verification=verified)
    text = measured.render(context)
    assert "judged on the small trained checkpoint `tiny`" in text
    assert ("Changed since then, and not judged again: `classic`." in text) is changed
