"""This project's own README, guides, charts and reports are those of its records."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from statistics import mean

import pytest

from kontext_fast.records.names import ran_on_gpu
from kontext_fast.records.schema import Record
from kontext_fast.records.store import RECORDS_NAME
from tests.records.builder import record, timed
from tools.docs.doc_blocks import block_names, without_passages
from tools.docs.repository import differences
from tools.docs.result_tree import find_published

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"

MORE = 1.1
"""Sizes whose tokens differ by less take the same time as far as one call can tell."""

CLAIMS = re.compile(r"\d+\.\d+ ?x\b|\$ ?\d|\b\d+\.\d+ (s|ms|GiB)\b|\b\d+ GiB\b")
"""Factors, dollars, times and memory; sizes such as 128x128 are none."""


def test_documents_and_records_agree() -> None:
    """`make docs` mends it."""
    assert differences(ROOT) == []


def test_readme_shows_records_where_there_are_some() -> None:
    if not list((ROOT / "results").glob(f"**/{RECORDS_NAME}")):
        # Without any, the documents say so; the test above holds them, and the reports, to that.
        assert not (ROOT / "reports").exists()
        assert not (ROOT / "visualizations").exists()
        return
    shown = set(block_names(README.read_text()))
    assert {"pitch", "picture", "choices", "rivals", "measured", "tiny_edit"} <= shown
    assert not shown & {"headline", "presets"}  # the full tables stand in docs/results.md alone
    assert {"headline", "presets"} <= set(block_names((ROOT / "docs" / "results.md").read_text()))


def test_readme_has_no_typed_numbers() -> None:
    typed = [line for line in without_passages(README.read_text()).splitlines() if CLAIMS.search(line)]
    assert typed == []


@pytest.mark.parametrize(
    "claim", ["2.59x faster", "1.5 x", "saves $1,091 a month", "takes 2.74 s", "36.2 GiB", "24 GiB"]
)
def test_claims_pattern_finds_typed_numbers(claim: str) -> None:
    assert CLAIMS.search(claim)


@pytest.mark.parametrize("words", ["128x128", "1024x1024 pixels", "26.8 dB", "Python 3.11 to 3.13", "FLUX.1-Kontext"])
def test_claims_pattern_ignores_other_numbers(words: str) -> None:
    assert not CLAIMS.search(words)


def nearer_without_interval(text: str) -> list[str]:
    """Sentences that call something nearer or farther by a number, and not by an interval."""
    passages = [" ".join(passage.split()) for passage in re.split(r"\n\s*\n|\n(?=- )|\n(?=\|)", text)]
    sentences = [sentence for passage in passages for sentence in re.split(r"(?<=[.:;]) (?=[A-Z*\d])", passage)]
    return [
        sentence
        for sentence in sentences
        if re.search(r"\b(nearer|farther)\b", sentence)
        and re.search(r"\b0\.0\d+|\d %|\b\d+ (evaluations|steps)|\bthan \d+", sentence)
        and not re.search(r"interval|bound|no farther|cannot be told|not tested|where ", sentence)
    ]


@pytest.mark.parametrize("document", ["README.md", "docs/engine.md", "docs/results.md"])
def test_nearer_and_farther_stand_with_an_interval(document: str) -> None:
    assert nearer_without_interval((ROOT / document).read_text()) == []


def test_claim_without_an_interval_would_be_found() -> None:
    claim = "- **It beats plain steps.** 11 computed steps lie nearer than 14 plain ones,\n  9 nearer than 10."
    assert len(nearer_without_interval(claim)) == 1


def shrinking(run: Record) -> list[str]:
    """Where a process took no longer for more tokens, everything else equal."""
    times: dict[tuple[object, ...], list[tuple[int, float]]] = {}
    for measurement in run.measurements:
        of = measurement.workload
        wall = mean(sample.wall_s for sample in measurement.samples if not sample.warmup)
        tokens = of.text_tokens + of.image_tokens + of.reference_tokens
        times.setdefault((of.steps, of.mode, of.batch), []).append((tokens, wall))
    return [
        f"{run.preset}: {less} tokens {short:.2f} s, {more} tokens {long:.2f} s"
        for alike in times.values()
        for (less, short), (more, long) in combinations(sorted(alike), 2)
        if more >= MORE * less and long <= short
    ]


def test_gpu_times_grow_with_tokens_run() -> None:
    speed = find_published(ROOT / "results").speed
    assert speed is not None
    runs = [one for one in speed.records if ran_on_gpu(one.environment) and len(one.measurements) > 1]
    assert runs
    assert [line for one in runs for line in shrinking(one)] == []


def test_shrinking_times_would_be_found() -> None:
    """As those of the original, whose every "resolution" ran at about one megapixel."""
    (large,) = timed("baseline", 0, [1.0, 1.0]).measurements
    wider = large.workload.model_copy(update={"image_tokens": 2 * large.workload.image_tokens})
    run = record("baseline", 0).model_copy(
        update={"measurements": (large, large.model_copy(update={"workload": wider}))}
    )
    assert shrinking(run) == ["baseline: 176 tokens 1.00 s, 240 tokens 1.00 s"]
