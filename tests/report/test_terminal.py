"""The headline in 80 columns: numbers stay readable however long the labels and reasons are."""

from __future__ import annotations

import io

from rich.console import Console

from kontext_fast.analysis.benchmark import analyze_benchmark
from kontext_fast.records.schema import ResultFile
from kontext_fast.report.output.terminal import print_headline
from tests.records.builder import record, result, timed

LONG = "without a part of its recipe: it needs a card of another kind, which this machine does not have; run it on one"


def printed(of: ResultFile) -> list[str]:
    text = io.StringIO()
    print_headline(analyze_benchmark(of), Console(file=text, width=80, highlight=False))
    return text.getvalue().splitlines()


def test_long_labels_are_printed_below_the_table() -> None:
    lines = printed(
        result(
            [
                timed("baseline", 0, [1.0, 1.0]),
                timed("peer:magcache", 0, [0.25, 0.25], labels=("fixed schedule", LONG)),
                timed("cache", 0, [0.5, 0.5], labels=(LONG,)),
                record("peer:regione", 0, status="refused", reason="It cannot be installed beside us."),
            ]
        )
    )
    (cache,) = (line for line in lines if line.startswith("cache "))
    assert cache.split()[:5] == ["cache", "[1]", "0.500", "s", "2.00x"]
    (peer,) = (line for line in lines if line.startswith("peer:magcache "))
    assert peer.split()[:5] == ["peer:magcache", "[1,2]", "0.250", "s", "4.00x"]
    text = " ".join(" ".join(lines).split())
    assert f"[1] {LONG} [2] fixed schedule" in text
    assert "peer:regione: refused. It cannot be installed beside us." in text
    assert all(len(line) <= 80 for line in lines)


def test_headline_lists_baseline_first_and_peers_last() -> None:
    names = ["peer:steps-8", "cache", "peer:magcache", "baseline", "another"]
    runs = [timed(name, 0, [1.0, 1.0], order=order) for order, name in enumerate(names)]
    shown = [line.split()[0] for line in printed(result(runs)) if line.split() and line.split()[0] in names]
    assert shown == ["baseline", "cache", "another", "peer:magcache", "peer:steps-8"]
