"""`kontext bench --peers`: peers are rows of the same run, and a peer that cannot run is a row with its reason."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from kontext_fast.analysis.groups import groups
from kontext_fast.analysis.rows import headline
from kontext_fast.bench import peers
from kontext_fast.cli.main import run
from kontext_fast.errors import Refused
from kontext_fast.optimizations.presets import resolve
from kontext_fast.pipeline.device import Machine
from kontext_fast.records.schema import BASELINE, Record, ResultFile
from kontext_fast.records.store import ResultStore
from tests.bench.test_bench_command import SUITE

ON_A_CPU = {
    *("peer:compiled", "peer:first-block-cache", "peer:magcache", "peer:taylorseer", "peer:taylorseer-lite"),
    *("peer:steps-8", "peer:steps-12", "peer:steps-20"),
}
"""Peers that need neither a GPU nor a package of the extra `peers`."""

CACHE_DIT = {"peer:cache-dit", "peer:cache-dit-ultra", "peer:cache-dit-12-of-28"}


def bench(folder: Path, *options: str) -> ResultFile:
    suite = folder / "short.toml"
    suite.write_text(SUITE.replace("steps = [2]", "steps = [8]").replace('["native"]', '["64x64"]'))
    common = ["bench", "--suite", str(suite), "--checkpoint", "tiny", "--device", "cpu", "--peers"]
    assert run([*common, "--out", str(folder / "out"), *options]) == 0
    return ResultStore(folder / "out").load()


def can_run(peer: str) -> bool:
    try:
        resolve(peers.find_preset(peer), Machine.detect("cpu"))
    except Refused:
        return False
    return True


def by_preset(result: ResultFile) -> dict[str, Record]:
    assert len({record.preset for record in result.records}) == len(result.records)
    return {record.preset: record for record in result.records}


@pytest.mark.slow
def test_peers_option_adds_peers_to_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    some = (BASELINE, "peer:para-attention", "peer:steps-12")
    known = peers.discover_peers()
    monkeypatch.setattr(peers, "discover_peers", lambda: {name: known[name] for name in some[1:]})
    result = bench(tmp_path)
    assert {name: record.status for name, record in by_preset(result).items()} == dict(
        zip(some, ("ok", "refused", "ok"), strict=True)
    )
    assert result.command.endswith(" --peers")
    output = capsys.readouterr().out
    assert "peer:para-attention: refused. " in output
    # One table: peers with fewer steps are in the same group as those with all steps.
    (group,) = groups(result)
    (fewer,) = (row for row in headline(group) if row.preset == "peer:steps-12")
    assert fewer.factor is not None
    assert "runs 12 steps where 28 are asked for" in fewer.labels


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_each_peer_is_ok_or_refused_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    records = by_preset(bench(tmp_path))
    assert set(records) == {BASELINE, *peers.discover_peers()}
    statuses = {name: record.status for name, record in records.items()}
    ran = {name for name, status in statuses.items() if status == "ok"}
    assert ran == {BASELINE, *(name for name in peers.discover_peers() if can_run(name))}, statuses
    assert ran >= ON_A_CPU | (CACHE_DIT if find_spec("cache_dit") else set())
    for name, record in records.items():
        assert record.status in ("ok", "refused"), record.stderr_tail
        assert (record.reason is None) == (record.status == "ok")
        if record.status == "ok" and name != BASELINE:
            assert record.plan
