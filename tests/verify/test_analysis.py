"""Verdicts on synthetic results, through stored images, real metrics and records, and the page that shows them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kontext_fast.errors import InvalidInput
from kontext_fast.records.store import ResultStore
from kontext_fast.report.output.item_cards import arbitrary, difference_map, worst
from kontext_fast.report.output.quality_page import write_quality_page
from kontext_fast.verify.analysis import PresetAnalysis, analyze
from kontext_fast.verify.margins import Margins, read_margins
from kontext_fast.verify.verdict import Level
from tests.metrics.cases import noise
from tests.records.builder import full
from tests.verify.synthetic_results import losing, noisy, untouched, verification


def _wider(margins: Margins) -> Margins:
    """For fewer items than a quality verdict needs."""
    return margins.model_copy(update={"primary": {"judge_done": 0.1, "judge_kept": 0.1}})


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> ResultStore:
    presets = {"near": noisy(0.5, seed=9), "farther": noisy(1.5), "losing": losing(3)}
    folder = tmp_path_factory.mktemp("rendered")
    return verification(folder, presets, items=30, control_items=8, margins=_wider(read_margins()))


def _verdicts(store: ResultStore) -> dict[str, PresetAnalysis]:
    return {preset.preset: preset for preset in analyze(store.load()).presets}


def test_each_synthetic_preset_gets_its_verdict(store: ResultStore) -> None:
    verdicts = _verdicts(store)
    levels = {name: preset.verdict.level for name, preset in verdicts.items()}
    assert levels == {"near": Level.EQUIVALENT, "farther": Level.NON_INFERIOR, "losing": Level.LOSS}
    assert "judge_kept is 0.33" in verdicts["losing"].verdict.reason
    assert not analyze(store.load()).insensitive


def test_worst_items_first_and_random_ones_independent(store: ResultStore) -> None:
    analysis = analyze(store.load())
    (losing_preset,) = (preset for preset in analysis.presets if preset.preset == "losing")
    assert losing_preset.evidence is not None
    (kept,) = (quality for quality in losing_preset.evidence.quality if quality.metric == "judge_kept")
    lost = {item for item, values in kept.differences.items() if sum(values) < 0}
    ranked = worst(losing_preset, analysis)
    assert set(ranked[: len(lost)]) == lost
    items = list(kept.differences)
    assert arbitrary(items, 3) == arbitrary(items[::-1], 3) != arbitrary(items, 4)
    assert sorted(arbitrary(items, 3)) == sorted(items)


def test_page_is_one_complete_file(store: ResultStore) -> None:
    page = write_quality_page(store.folder)
    assert page == store.folder / "visualizations" / "quality" / "index.html"
    text = page.read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:|#)", text)
    assert "url(" not in text
    for words in ("L1 numerically equivalent", "L2 non-inferior", "L3 measured loss", "the loss in judge_kept"):
        assert words.lower() in text.lower()
    assert text.count('<article class="card"') == 3 * 24
    assert text.count('<input type="range"') == 3 * 24
    assert "not measured: no output came with what it needs" in text.lower()
    for chart in ("paired_differences.png", "score_distributions.png"):
        assert (page.parent / chart).read_bytes().startswith(b"\x89PNG")


def test_page_is_written_without_a_missing_image(store: ResultStore, tmp_path: Path) -> None:
    result = store.load()
    (record,) = (record for record in result.records if record.arm and record.arm.name == "near")
    gone = record.outputs[0].image
    assert gone is not None
    path = store.image_path(gone)
    kept = path.read_bytes()
    path.unlink()
    try:
        text = write_quality_page(store.folder, tmp_path).read_text()
    finally:
        path.write_bytes(kept)
    assert text.count('<article class="card"') >= 3 * 24 - 2


def test_records_of_a_benchmark_are_refused(tmp_path: Path) -> None:
    bench = ResultStore(tmp_path)
    bench.write(full(bench))
    with pytest.raises(InvalidInput, match="not of a verification"):
        write_quality_page(tmp_path)


def test_insensitive_judge_carries_no_verdict(tmp_path: Path) -> None:
    presets = {"noisy": noisy(1.1), "losing": losing(2), "same": untouched}
    margins = _wider(read_margins())
    store = verification(tmp_path, presets, items=5, control_items=5, margins=margins, gray=True)
    analysis = analyze(store.load())
    assert {"judge_done", "judge_kept"} <= set(analysis.insensitive)
    levels = {preset.preset: preset.verdict.level for preset in analysis.presets}
    # An object on a picture that baseline leaves gray is beyond all noise, whatever the judge can see.
    assert levels == {"noisy": Level.NOT_MEASURED, "losing": Level.LOSS, "same": Level.IDENTICAL}


def test_difference_map_is_black_where_images_agree() -> None:
    picture = noise(1)
    assert difference_map(picture, picture).getextrema() == ((0, 0), (0, 0), (0, 0))
    spoiled = picture.copy()
    spoiled.paste((255, 255, 255), (0, 0, 10, 10))
    drawn = difference_map(picture, spoiled)
    assert drawn.crop((20, 20, 60, 40)).getbbox() is None
    assert drawn.getbbox() is not None
