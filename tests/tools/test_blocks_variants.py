"""Variants of presets have tables of their own, and no part in what leads the documents."""

from __future__ import annotations

from pathlib import Path

from kontext_fast.records.store import ResultStore
from tests.records.builder import result, timed
from tools.docs.blocks import variants
from tools.docs.doc_context import DocContext
from tools.docs.result_tree import find_published


def _store(folder: Path, *presets: str) -> None:
    records = [
        timed(preset, round_, [seconds + 0.01 * round_] * 2, run_id=f"{folder.name} {preset} {round_}")
        for round_ in range(3)
        for preset, seconds in zip(presets, (4.0, 2.0, 1.0), strict=False)
    ]
    ResultStore(folder).write(result(records))


def test_variants_alone_have_a_table_and_lead_nothing(tmp_path: Path) -> None:
    results = tmp_path / "results"
    _store(results / "presets", "baseline", "faithful", "turbo")
    _store(results / "variants", "baseline", "faithful(attention=flash3)", "turbo(attention=flash3)")
    published = find_published(results)
    assert published.speed is not None
    assert {record.preset for record in published.speed.records} == {"baseline", "faithful", "turbo"}
    lines = variants.render(DocContext(published, to_root="../")).splitlines()
    assert lines[0] == "| preset | seconds | factor | GPU memory |"
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:5]] == [
        "`baseline`",
        "`faithful(attention=flash3)`",
        "`turbo(attention=flash3)`",
    ]
    assert "| reference |" in lines[2]
    assert "2.00x" in lines[3]
    assert "results/variants" in lines[-1]


def test_variants_beside_presets_are_part_of_that_benchmark(tmp_path: Path) -> None:
    _store(tmp_path / "results" / "mixed", "baseline", "turbo", "turbo(computed=5)")
    published = find_published(tmp_path / "results")
    assert published.speed is not None
    assert "turbo(computed=5)" in {record.preset for record in published.speed.records}
    assert "No variant" in variants.render(DocContext(published))
