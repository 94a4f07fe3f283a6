"""The published records reproduce what other code had measured before of four recipes on one H200.

Known with PyTorch 2.11, the full architecture with random weights, an edit at 1024x1024 in 28 steps, VAE included and
text encoders excluded. An H100 SXM has the same multiprocessors and slower memory.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kontext_fast.analysis.benchmark import AnalyzedGroup, analyze_benchmark
from tools.docs.result_tree import find_published

CARDS = ("NVIDIA H200", "NVIDIA H100 80GB HBM3")
KNOWN_S = {
    "baseline": 10.31,
    "peer:compiled": 8.22,
    "peer:compiled-float8": 6.14,
    "peer:cache-dit-12-of-28": 2.78,
}
WITHIN = 0.10


def is_alike(group: AnalyzedGroup) -> bool:
    workload = group.workload
    return (
        group.machine in CARDS
        and group.checkpoint is not None
        and group.checkpoint.random_weights
        and group.compile_cache == "user"
        and workload is not None
        and (workload.mode, workload.width, workload.height) == ("edit", 1024, 1024)
        and (workload.steps, workload.batch) == (28, 1)
    )


@pytest.fixture(scope="module")
def groups() -> list[AnalyzedGroup]:
    speed = find_published(Path(__file__).parents[2] / "results").speed
    assert speed is not None
    return [group for group in analyze_benchmark(speed) if is_alike(group)]


@pytest.mark.parametrize("recipe", KNOWN_S)
def test_known_figures_are_reproduced(groups: list[AnalyzedGroup], recipe: str) -> None:
    here_s = {
        group.machine: row.time.mean.value - stages.stages.get("text_encode", 0.0)
        for group in groups
        for stages in group.stages
        if stages.preset == recipe and (row := group.row(recipe)) is not None and row.time is not None
    }
    assert here_s
    assert all(abs(seconds / KNOWN_S[recipe] - 1) < WITHIN for seconds in here_s.values()), here_s
