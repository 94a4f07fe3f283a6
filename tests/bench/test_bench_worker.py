"""The real parent and the real worker on the bundled checkpoint."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import pytest

from kontext_fast.bench import worker
from kontext_fast.bench.protocol import Ended, Job, Message, SuiteAborted
from kontext_fast.bench.runner import SuiteProgress, run_suite
from kontext_fast.bench.suites import read_suite
from kontext_fast.errors import InvalidInput, Refused
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.patching import set_attribute
from kontext_fast.optimizations.presets import Plan
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


def test_each_run_has_a_complete_record(bench: tuple[ResultFile, Path, list[SuiteProgress]]) -> None:
    result, out, _ = bench
    assert ResultStore(out).load() == result
    assert {record.preset: record.status for record in result.records} == {"baseline": "ok", "fuse_qkv": "ok"}
    for record in result.records:
        assert record.checkpoint is not None
        assert record.checkpoint.name == "tiny"
        assert [applied.name for applied in record.plan] == ([] if record.preset == "baseline" else ["fuse_qkv"])
        assert record.load_s is not None
        assert record.load_s > 0
        assert record.apply_s is not None
        (measurement,) = record.measurements
        assert measurement.workload.steps == 2
        assert (measurement.workload.width, measurement.workload.height) == (128, 128)
        assert measurement.workload.items == tuple(item.id for item in result.items)
        assert measurement.first_call_s == measurement.samples[0].wall_s


def test_samples_are_warm_ups_and_then_calls_over_items(
    bench: tuple[ResultFile, Path, list[SuiteProgress]],
) -> None:
    result, _, _ = bench
    for preset in ("baseline", "fuse_qkv"):
        of_preset = samples(result, preset)
        assert [sample.warmup for sample in of_preset] == [True, True, False, False, False]
        first, second = (item.id for item in result.items)
        assert [sample.item for sample in of_preset] == [first, first, first, second, first]
        for sample in of_preset:
            assert sample.step_kinds == ("full", "full")
            assert len(sample.steps_s) == 2
            assert 0 < sum(sample.stages_s.values()) <= sample.wall_s
            assert sample.memory.allocated_peak_bytes is None


def test_presets_use_the_same_items_and_seeds(bench: tuple[ResultFile, Path, list[SuiteProgress]]) -> None:
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


def test_environment_has_no_private_facts(bench: tuple[ResultFile, Path, list[SuiteProgress]]) -> None:
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


def test_worker_reports_phases_calls_and_steps(bench: tuple[ResultFile, Path, list[SuiteProgress]]) -> None:
    _, _, seen = bench
    messages = [update.progress for update in seen if update.progress is not None and update.run == 0]
    assert list(dict.fromkeys(progress.phase for progress in messages)) == [
        "loading",
        "applying",
        "first call",
        "warm-up",
        "measuring",
    ]
    assert [progress.step for progress in messages if progress.phase == "first call"] == [0, 1, 2]
    assert [progress.call for progress in messages if progress.phase == "measuring"] == [1, 2, 3]


def test_missing_checkpoint_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no checkpoint"):
        run_suite(QUICK, tmp_path, checkpoint="no such thing")


def test_missing_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="GPU"):
        run_suite(QUICK, tmp_path, device="cuda:63")


class _TooWide(Optimization):
    name: ClassVar[str] = "too_wide"
    summary: ClassVar[str] = "fits no checkpoint"
    effect: ClassVar[Effect] = Effect.EXACT
    phase: ClassVar[Phase] = Phase.STEPS

    in_a_call: bool

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        def refuse(*args: Any, **kwargs: Any) -> NoReturn:
            raise InvalidInput("too_wide computes 8 blocks and the transformer has 6; use a larger checkpoint.")

        if not self.in_a_call:
            refuse()
        set_attribute(pipe.transformer, "forward", refuse, undo)
        return {}


@pytest.mark.parametrize("in_a_call", [False, True])
def test_preset_unfit_for_the_checkpoint_is_refused(
    in_a_call: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_plan", lambda *_: Plan("too_wide", (_TooWide(in_a_call=in_a_call),)))
    job = Job(
        checkpoint="tiny", preset="too_wide", suite=QUICK, cells=QUICK.tiers[0].cells, device="cpu",
        keep_images=False, folder=str(tmp_path),
    )  # fmt: skip
    messages: list[Message] = []
    worker.run(job, messages.append)
    assert not [message for message in messages if isinstance(message, SuiteAborted)]
    last = messages[-1]
    assert isinstance(last, Ended)
    assert (last.status, "use a larger checkpoint" in str(last.reason)) == ("refused", True)


@pytest.mark.parametrize(("checkpoint", "kept"), [("tiny", [True, False]), ("random", [False, False])])
def test_images_are_kept_once_but_not_of_random_weights(checkpoint: str, kept: list[bool], tmp_path: Path) -> None:
    workers = faulty(baseline="reports_keep_images")
    result = run_suite(suite_of("baseline", rounds=2), tmp_path, checkpoint=checkpoint, worker_command=workers)
    assert [record.environment["keep_images"] for record in result.records] == kept


@pytest.mark.slow
def test_preset_on_two_gpus_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes, here on the CPU, make every call together, and one of them reports."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    suite = QUICK.override(presets=("faithful(gpus=2)",), rounds=1, items=1, calls=2, steps=(2,), sizes=("64x64",))
    (record,) = run_suite(suite, tmp_path, device="cpu").records
    assert (record.status, record.preset) == ("ok", "faithful(gpus=2)"), record.stderr_tail
    assert record.labels[0].startswith("2 GPUs together")
    assert record.plan[0].parameters["gpus"] == 2
    assert len([sample for sample in record.measurements[0].samples if not sample.warmup]) == 2


def test_fewer_gpus_than_a_preset_needs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    worker._require_gpus(2, torch.device("cpu"))
    with pytest.raises(Refused, match="needs 2 GPUs and torch sees 1"):
        worker._require_gpus(2, torch.device("cuda"))
