"""The passage on planted faults counts what `research.faults.study` wrote."""

from __future__ import annotations

import json
from pathlib import Path

from tools.docs.blocks import faults
from tools.docs.doc_context import DocContext
from tools.docs.result_tree import find_published


def answer(fault: str, family: str, level: str, items: int, before: str = "L2", seed: int = 0) -> dict[str, object]:
    return {"fault": fault, "family": family, "level": level, "items": items, "before": before, "seed": seed}


def test_passage_counts_families_and_names_every_mistake(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "h100" / "checks"
    folder.mkdir(parents=True)
    answers = [
        answer("nothing", "harmless", "L0", 50),
        answer("nothing", "harmless", "L3", 100, seed=7),
        answer("black", "rare", "cannot tell", 50),
        answer("black", "rare", "L3", 100, before="L3"),
        answer("noise", "rare", "L3", 50),
        answer("noise", "rare", "L2", 100),
        answer("nothing", "harmless", "L3", 200, seed=7),
        answer("black", "rare", "L3", 200, before="L3"),
        answer("noise", "rare", "cannot tell", 200),
    ]
    study = {"gpu": "Imaginary GPU", "commit": "abc1234", "seeds": 2, "steps": 28, "answers": answers}
    (folder / "faults.json").write_text(json.dumps(study))
    (folder / "faults_before.json").write_text(json.dumps({**study, "rules": "By the rules of before"}))
    passage = faults.render(DocContext(find_published(tmp_path / "results")))
    assert "| rare | 2 | 1 | 1 | 1 | 1 |\n| harmless | 1 | 0 | 1 | 1 | 0 |" in passage
    assert "| L3 at 50 items | L3 at 100 items | L3 at 200 items | without the five rules at 200 |" in passage
    assert "Missed: noise is called L2 at 100, cannot tell at 200 items." in passage
    assert "Missed: black is called cannot tell at 50 items." in passage
    assert "Missed: nothing" not in passage
    assert "Called a loss without one: nothing with seed 7 at 100 and 200 items." in passage
    assert passage.count("| family |") == 2
    assert "By the rules of before:\n\n| family |" in passage
    assert passage.startswith("By"), "the file whose name comes last is the newest"
    assert "On Imaginary GPU, 2 seeds an item and 28 steps, at abc1234: [results/h100/checks/faults.json]" in passage


def test_passage_without_a_study_says_so(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    assert faults.render(DocContext(find_published(tmp_path / "results"))) == "Not run on a GPU yet."
