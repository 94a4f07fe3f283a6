"""Stored outputs are scored by every metric that works, alike in one process and in several."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from kontext_fast.bench.runner import run_suite
from kontext_fast.bench.suites import read_suite
from kontext_fast.datasets.shapes import held_out
from kontext_fast.datasets.shapes.judge import judge
from kontext_fast.errors import InvalidInput
from kontext_fast.metrics import scorer
from kontext_fast.metrics.base import LATENTS, REFERENCE, Case, Control, Metric, Need, Role, Setting
from kontext_fast.metrics.scorer import Scorer, StoredOutput, judge_benchmark
from kontext_fast.metrics.shapes_judge import JudgeDone, JudgeKept
from kontext_fast.records.schema import MetricFacts, Score, StoredItem
from kontext_fast.records.store import ResultStore
from tests.metrics.cases import FreeItem, noise
from tests.records.builder import RANDOM, record, result, sample, workload
from tests.records.builder import item as builder_item

TINY = Setting(has_judge=True)
JUDGES = (JudgeDone, JudgeKept)


def _stored(folder: Path, count: int) -> list[StoredOutput]:
    """Every second output is right, and the others are the unedited input."""
    outputs = []
    for index, item in enumerate(held_out(count, 3)):
        file = folder / f"{index}.png"
        (item.target if index % 2 else item.image).save(file)
        outputs.append(StoredOutput(item=item, seed=0, image=str(index), file=file))
    return outputs


def _scores(of: Scorer, outputs: Sequence[StoredOutput]) -> list[Score]:
    ((name, scores),) = of.score({"group": outputs})
    assert name == "group"
    return scores


@pytest.fixture
def many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "_WORTH_A_PROCESS", 2)
    monkeypatch.setattr(scorer, "_processors", lambda: 2)


def test_several_processes_give_the_same_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many_processes: None
) -> None:
    outputs = _stored(tmp_path, 5)
    monkeypatch.setattr(scorer, "_processors", lambda: 1)
    expected = _scores(Scorer(TINY, [output.item for output in outputs], JUDGES), outputs)
    assert {score.value for score in expected if score.metric == "judge_done"} == {True, False}
    monkeypatch.setattr(scorer, "_processors", lambda: 2)

    def refusing(*_: object) -> None:
        raise AssertionError("every output was judged in another process")

    monkeypatch.setattr("kontext_fast.datasets.shapes.judge.judge", refusing)
    assert _scores(Scorer(TINY, [output.item for output in outputs], JUDGES), outputs) == expected


def test_share_of_a_failed_process_is_scored_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many_processes: None
) -> None:
    outputs = _stored(tmp_path, 5)
    outputs[0].file.write_bytes(b"no picture")
    judged: list[str] = []

    def counting(image: Image.Image, item: object) -> object:
        judged.append(item.id)  # type: ignore[attr-defined]
        return judge(image, item)  # type: ignore[arg-type]

    monkeypatch.setattr("kontext_fast.datasets.shapes.judge.judge", counting)
    of = Scorer(TINY, [output.item for output in outputs], JUDGES)
    with pytest.raises(InvalidInput, match=r"0\.png cannot be read"):
        _scores(of, outputs)
    held_out(5, 3)[0].image.save(outputs[0].file)
    outputs[4].file.write_bytes(b"no picture")
    monkeypatch.setattr(scorer, "_CHUNK", 4)
    with pytest.raises(InvalidInput, match=r"4\.png cannot be read"):
        _scores(of, outputs)
    # The share of the process that failed was outputs 0, 2 and 4; the other one judged 1 and 3.
    assert judged == [outputs[0].item.id, outputs[2].item.id]


def test_other_process_answers_for_every_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = _stored(tmp_path, 5)
    judges = [metric(TINY) for metric in JUDGES]
    expected = _scores(Scorer(TINY, [output.item for output in outputs], JUDGES), outputs)
    answer = BytesIO()
    monkeypatch.setattr(scorer, "_CHUNK", 2)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=BytesIO(pickle.dumps((judges, outputs)))))
    monkeypatch.setattr("sys.stdout", SimpleNamespace(buffer=answer))
    scorer.score_stdin()
    values = pickle.loads(answer.getvalue())
    assert [by_metric["judge_done"] for by_metric in values] == [
        (score.value, score.note) for score in expected if score.metric == "judge_done"
    ]
    assert [set(by_metric) for by_metric in values] == [{"judge_done", "judge_kept"}] * 5


def test_other_processes_take_one_core_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many_processes: None
) -> None:
    """Two of as many threads as there are cores would wait for each other."""
    environments: list[dict[str, str]] = []

    def failing(*_: object, env: dict[str, str], **__: object) -> SimpleNamespace:
        environments.append(env)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr("subprocess.run", failing)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    outputs = _stored(tmp_path, 4)
    # Of five cores two, since a process is worth two outputs.
    monkeypatch.setattr(scorer, "_processors", lambda: 5)
    assert len(_scores(Scorer(TINY, [output.item for output in outputs], JUDGES), outputs)) == 8
    assert len(environments) == 2
    for environment in environments:
        assert (environment["OMP_NUM_THREADS"], environment["OPENBLAS_NUM_THREADS"]) == ("1", "1")
        assert environment["PATH"]


def test_processors_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3, 5} if process == 0 else set(), raising=False)
    assert scorer._processors() == 2
    monkeypatch.delattr("os.sched_getaffinity")
    assert scorer._processors() == 7
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert scorer._processors() == 1


def test_missing_image_and_cut_latents_say_what_to_do(tmp_path: Path) -> None:
    (output,) = _stored(tmp_path, 1)
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    cut = replace(output, reference_file=output.file, latents_file=tmp_path / "cut.npy")
    with pytest.raises(InvalidInput, match=r"^The latents .*cut\.npy are cut off; go on with --resume"):
        cut.load()
    np.save(tmp_path / "pickled.npy", np.array([output.file], dtype=object), allow_pickle=True)
    pickled = replace(cut, latents_file=tmp_path / "pickled.npy")
    with pytest.raises(InvalidInput, match=r"^The latents .*pickled\.npy are cut off"):
        pickled.load()
    output.file.unlink()
    with pytest.raises(InvalidInput, match=r"^The output 0\.png is missing from the result folder; run"):
        output.load()


def test_judge_scores_carry_the_reasons(tmp_path: Path) -> None:
    outputs = _stored(tmp_path, 4)
    scores = _scores(Scorer(TINY, [output.item for output in outputs], JUDGES), outputs)
    for index, output in enumerate(outputs):
        by_metric = {score.metric: score for score in scores if score.image == output.image}
        judgement = judge(Image.open(output.file), held_out(4, 3)[index])
        assert [by_metric[name].value for name in ("judge_done", "judge_kept")] == [judgement.done, judgement.kept]
        assert by_metric["judge_done"].note == ("; ".join(judgement.reasons) or None)


class _Pixels(Metric):
    """Has a need of its own, which no other file knows."""

    name: ClassVar[str] = "pixels"
    title: ClassVar[str] = "pixels"
    role: ClassVar[Role] = Role.QUALITY
    needs: ClassVar[tuple[Need, ...]] = (Need("a kind", lambda case: case.item.kind is not None, of_item=True),)
    must_detect: ClassVar[frozenset[Control]] = frozenset({Control.BLUR})

    def scores(self, cases: Sequence[Case]) -> list[float | bool | None]:
        return [float(np.asarray(case.output).mean()) for case in cases]


class _Modelled(_Pixels):
    """Looks through a model, and so has facts about it."""

    needs: ClassVar[tuple[Need, ...]] = ()

    def model(self) -> tuple[str, str]:
        return "a model", "f" * 64


class _Difference(_Pixels):
    name: ClassVar[str] = "difference"
    role: ClassVar[Role] = Role.FIDELITY
    needs: ClassVar[tuple[Need, ...]] = (REFERENCE,)


class _Latents(_Difference):
    name: ClassVar[str] = "latents"
    needs: ClassVar[tuple[Need, ...]] = (LATENTS,)

    def scores(self, cases: Sequence[Case]) -> list[float | bool | None]:
        return [float(case.latents.sum()) for case in cases if case.latents is not None]


def test_output_without_a_need_gets_no_score(tmp_path: Path) -> None:
    for name, size in (("small", (16, 16)), ("large", (32, 32))):
        noise(1, size).save(tmp_path / f"{name}.png")
    np.save(tmp_path / "latents.npy", np.ones((1, 2, 2), np.float32))
    latents = tmp_path / "latents.npy"
    kind = FreeItem(id="with a kind", image=noise(1), kind="recolor")
    plain = FreeItem(id="plain", image=noise(1))

    def output(item: FreeItem, file: str, reference: str, latents_file: Path | None) -> StoredOutput:
        return StoredOutput(
            item=item,
            seed=3,
            image=file,
            file=tmp_path / f"{file}.png",
            reference_file=tmp_path / f"{reference}.png",
            latents_file=latents_file,
            reference_latents_file=latents,
        )

    outputs = [
        output(kind, "small", "small", latents),
        output(plain, "small", "small", tmp_path / "none.npy"),
        output(plain, "large", "small", latents),
    ]
    of = Scorer(Setting(), [kind, plain], [_Pixels, _Difference, _Latents])
    scores = _scores(of, outputs)
    assert [(score.metric, score.item, score.image) for score in scores] == [
        ("pixels", "with a kind", "small"),
        ("difference", "with a kind", "small"),
        ("difference", "plain", "small"),
        ("latents", "with a kind", "small"),
    ]
    assert {score.seed for score in scores} == {3}
    assert scores[-1].value == 4.0


def test_outputs_are_scored_in_chunks_whose_number_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of any mode are read as RGB, and what two groups share is told of each."""
    monkeypatch.setattr(scorer, "_CHUNK", 2)
    outputs = []
    for index in range(5):
        Image.new("L", (4, 4), index).save(tmp_path / f"{index}.png")
        file = tmp_path / f"{index}.png"
        outputs.append(StoredOutput(item=FreeItem(image=noise(1)), seed=index, image=str(index), file=file))
    of, counts = Scorer(Setting(), [], [_Modelled]), []
    groups = dict(of.score({"all": outputs, "last": outputs[4:]}, counts.append))
    assert [(score.image, score.seed, score.value) for score in groups["all"]] == [
        (str(index), index, index) for index in range(5)
    ]
    assert [score.value for score in groups["last"]] == [4]
    assert counts == [2, 2, 1, 1]
    assert {case.output.mode for case in (output.load() for output in outputs)} == {"RGB"}


def test_metrics_that_are_not_parallel_start_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many_processes: None
) -> None:
    started: list[object] = []
    monkeypatch.setattr("subprocess.run", lambda *process, **_: started.append(process))
    assert len(_scores(Scorer(Setting(), [], [_Modelled]), _stored(tmp_path, 5))) == 5
    assert not started


def test_all_known_metrics_are_prepared_with_facts_of_their_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "discover", lambda: {"pixels": _Modelled})
    assert Scorer(Setting(), []).facts == (MetricFacts(name="pixels", model="a model", weights_sha256="f" * 64),)


def test_need_that_no_item_meets_is_named() -> None:
    of = Scorer(Setting(), [FreeItem(image=noise(1))], [_Pixels, JudgeDone, _Difference])
    assert of.facts == (
        MetricFacts(name="pixels", not_measured="Not measured: no item comes with a kind."),
        MetricFacts(name="judge_done", not_measured="Not measured: no item comes with a judge."),
        MetricFacts(name="difference"),
    )


def test_quality_of_random_weights_is_not_measured() -> None:
    of = Scorer(Setting(random_weights=True), held_out(1), [JudgeDone, _Difference])
    assert of.facts[0].not_measured == "Not measured: the weights are random."
    assert of.facts[1].not_measured is None


def test_images_of_runs_that_learned_the_shapes_are_judged(tmp_path: Path) -> None:
    """All that were kept of measured calls, once each, however often; of other runs and of warm-ups none."""
    store, items = ResultStore(tmp_path), held_out(2, 5)
    right, wrong = (store.put_image(image) for image in (items[0].target, items[1].image))
    calls = (
        sample(items[0].id, 9.0, images=[wrong], warmup=True),
        sample(items[0].id, 1.0, images=[right, wrong], seed=4),
        sample(items[1].id, 1.0),
        sample(items[1].id, 1.0, images=[wrong]),
    )
    learned = record("baseline", 0, calls, of=workload([item.id for item in items]))
    of_others = {"random": RANDOM, "unknown": None}
    others = [
        learned.model_copy(update={"preset": name, "run_id": f"{name}-0", "checkpoint": checkpoint})
        for name, checkpoint in of_others.items()
    ]
    stored = [StoredItem(id=item.id, instruction=item.instruction, image=None) for item in items]
    store.write(
        result([*others, learned, record("refused", 0, status="refused")], stored).model_copy(update={"seed": 5})
    )
    judge_benchmark(store)
    by_run = {run.run_id: run.scores for run in store.load().records}
    assert {run_id for run_id, scores in by_run.items() if scores} == {"baseline-0"}
    expected = {
        (items[0].id, 4, right): judge(items[0].target, items[0]),
        (items[0].id, 4, wrong): judge(items[1].image, items[0]),
        (items[1].id, 0, wrong): judge(items[1].image, items[1]),
    }
    values = {(score.item, score.seed, score.image, score.metric): score.value for score in by_run["baseline-0"]}
    assert values == {
        (*key, name): value
        for key, judgement in expected.items()
        for name, value in (("judge_done", judgement.done), ("judge_kept", judgement.kept))
    }
    assert expected[items[0].id, 4, right].done
    assert not expected[items[1].id, 0, wrong].done
    judge_benchmark(store)
    assert {run.run_id: run.scores for run in store.load().records} == by_run
    store.image_path(right).unlink()
    with pytest.raises(InvalidInput, match="missing from the result folder"):
        judge_benchmark(store)


def test_benchmark_of_other_items_is_not_judged(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    run = record("baseline", 0, [sample("a", 1.0, images=[store.put_image(noise(1))])], of=workload(["a"]))
    store.write(result([run], [builder_item("a")]))
    with pytest.raises(InvalidInput) as caught:
        judge_benchmark(store)
    assert str(caught.value) == "Item a is not one of the shapes world's; measure again with this version."


@pytest.mark.slow
def test_benchmark_of_tiny_is_judged(tmp_path: Path) -> None:
    suite = (
        read_suite("quick").resolve("tiny").override(presets=("baseline",), control=False, rounds=1, steps=(2,), seed=5)
    )
    run_suite(suite, tmp_path, device="cpu", command="kontext bench")
    store = ResultStore(tmp_path)
    judge_benchmark(store)
    (record,) = store.load().records
    kept = [sample for sample in record.measurements[0].samples if sample.images and not sample.warmup]
    assert kept
    assert {(score.item, score.seed, score.image) for score in record.scores} == {
        (sample.item, sample.seed, image) for sample in kept for image in sample.images
    }
    assert {score.metric for score in record.scores} == {"judge_done", "judge_kept"}
    assert len(record.scores) == 2 * sum(len(sample.images) for sample in kept), "warm-ups are not judged"
    judge_benchmark(store)
    assert store.load().records[0].scores == record.scores
    store.image_path(kept[0].images[0]).unlink()
    with pytest.raises(InvalidInput, match="missing from the result folder"):
        judge_benchmark(store)
