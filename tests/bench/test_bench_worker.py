"""The real parent and the real worker on the bundled checkpoint."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest

from kontext_fast.bench import worker
from kontext_fast.bench.protocol import Ended, Job, Message, SuiteAborted
from kontext_fast.bench.runner import SuiteProgress, run_suite
from kontext_fast.bench.suites import read_suite
from kontext_fast.errors import InvalidInput, Refused
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.plan import Plan
from kontext_fast.records.schema import ResultFile
from kontext_fast.records.store import ResultStore
from tests.bench.test_bench_runner import faulty, suite_of

QUICK = read_suite("quick").resolve("tiny").override(control=False)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[ResultFile, Path, list[SuiteProgress]]:
    """Two presets, two items, two steps."""
    out = tmp_path_factory.mktemp("bench")
    seen: list[SuiteProgress] = []
    suite = QUICK.override(presets=("baseline", "fuse_qkv"), rounds=1, items=2, calls=3, steps=(2,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_averysecrettokenthatnobodysees")
        patch.setenv("OMP_NUM_THREADS", "1")
        result = run_suite(suite, out, device="cpu", on_progress=seen.append)
    return result, out, seen


def samples(result: ResultFile, preset: str) -> Any:
    (record,) = [record for record in result.records if record.preset == preset]
    return record.measurements[0].samples


def test_every_run_is_a_whole_record(bench: tuple[ResultFile, Path, list[SuiteProgress]]) -> None:
    result, out, _ = bench
    assert ResultStore(out).load() == result
    assert {record.preset: record.status for record in result.records} == {"baseline": "ok", "fuse_qkv": "ok"}
    for record in result.records:
        assert record.checkpoint is not None
        assert record.checkpoint.name == "tiny"
        assert [one.name for one in record.plan] == ([] if record.preset == "baseline" else ["fuse_qkv"])
        assert record.load_s is not None
        assert record.load_s > 0
        assert record.apply_s is not None
        (measurement,) = record.measurements
        assert measurement.workload.steps == 2
        assert (measurement.workload.width, measurement.workload.height) == (128, 128)
        assert measurement.workload.items == tuple(item.id for item in result.items)
        assert measurement.first_call_s == measurement.samples[0].wall_s


def test_samples_are_warm_ups_and_then_the_calls_over_the_items(
    bench: tuple[ResultFile, Path, list[SuiteProgress]],
) -> None:
    result, _, _ = bench
    for preset in ("baseline", "fuse_qkv"):
        taken = samples(result, preset)
        assert [sample.warmup for sample in taken] == [True, True, False, False, False]
        first, second = (item.id for item in result.items)
        assert [sample.item for sample in taken] == [first, first, first, second, first]
        for sample in taken:
            assert sample.step_kinds == ("full", "full")
            assert len(sample.steps_s) == 2
            assert 0 < sum(sample.stages_s.values()) <= sample.wall_s
            assert sample.memory.allocated_peak_bytes is None


def test_presets_can_be_compared_in_pairs(bench: tuple[ResultFile, Path, list[SuiteProgress]]) -> None:
    result, out, _ = bench
    pairs = [[(sample.item, sample.seed) for sample in samples(result, name)] for name in ("baseline", "fuse_qkv")]
    assert pairs[0] == pairs[1]
    assert len({seed for _, seed in pairs[0]}) == 2
    stored = [[sample.images for sample in samples(result, name)] for name in ("baseline", "fuse_qkv")]
    # One output per item is kept, of the first measured call; fusing changes no bit on a CPU.
    assert [len(images) for images in stored[0]] == [0, 0, 1, 1, 0]
    assert stored[0] == stored[1]
    kept = {image for images in stored[0] for image in images} | {item.image for item in result.items}
    assert len(kept) == 4
    assert all(ResultStore(out).image_path(str(image)).is_file() for image in kept)
    assert len(list((out / "results" / "images").iterdir())) == 4


def test_the_environment_is_told_without_anything_private(bench: tuple[ResultFile, Path, list[SuiteProgress]]) -> None:
    result, out, _ = bench
    environment = result.records[0].environment
    assert environment["device"] == "cpu"
    assert environment["packages"]["torch"]
    assert environment["flags"]["OMP_NUM_THREADS"] == "1"
    assert environment["torch_threads"] == 1
    assert environment["cpu"]
    assert environment["ram_bytes"] > 2**30
    text = json.dumps([record.model_dump(mode="json") for record in result.records])
    for private in (str(Path.home()), os.getcwd(), str(out), "averysecrettoken"):
        assert private not in text


def test_progress_comes_from_inside_the_worker(bench: tuple[ResultFile, Path, list[SuiteProgress]]) -> None:
    _, _, seen = bench
    told = [where.progress for where in seen if where.progress is not None and where.run == 0]
    assert list(dict.fromkeys(progress.phase for progress in told)) == [
        "loading",
        "applying",
        "first call",
        "warm-up",
        "measuring",
    ]
    assert [progress.step for progress in told if progress.phase == "first call"] == [0, 1, 2]
    assert [progress.call for progress in told if progress.phase == "measuring"] == [1, 2, 3]


def test_a_checkpoint_that_is_missing_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no checkpoint"):
        run_suite(QUICK, tmp_path, checkpoint="no such thing")


def test_a_device_that_this_machine_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="GPU"):
        run_suite(QUICK, tmp_path, device="cuda:63")


class _TooWide(Optimization):
    name: ClassVar[str] = "too_wide"
    summary: ClassVar[str] = "fits no checkpoint"
    effect: ClassVar[Effect] = Effect.EXACT
    phase: ClassVar[Phase] = Phase.STEPS

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        raise InvalidInput("too_wide computes 8 blocks and the transformer has 6; use a larger checkpoint.")


def test_a_preset_that_does_not_fit_the_checkpoint_is_refused_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_plan", lambda *_: Plan("too_wide", (_TooWide(),)))
    job = Job(
        checkpoint="tiny", preset="too_wide", suite=QUICK, cells=QUICK.tiers[0].cells, device="cpu",
        keep_images=False, folder=str(tmp_path),
    )  # fmt: skip
    said: list[Message] = []
    worker.run(job, said.append)
    assert not [message for message in said if isinstance(message, SuiteAborted)]
    last = said[-1]
    assert isinstance(last, Ended)
    assert (last.status, "use a larger checkpoint" in str(last.reason)) == ("refused", True)


@pytest.mark.parametrize(("checkpoint", "kept"), [("tiny", [True, False]), ("random", [False, False])])
def test_images_are_kept_once_and_never_of_random_weights(checkpoint: str, kept: list[bool], tmp_path: Path) -> None:
    workers = faulty(baseline="says_what_it_keeps")
    result = run_suite(suite_of("baseline", rounds=2), tmp_path, checkpoint=checkpoint, worker_command=workers)
    assert [record.environment["keep_images"] for record in result.records] == kept
