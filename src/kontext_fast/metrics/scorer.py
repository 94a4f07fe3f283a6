"""Scores stored outputs with a list of metrics, in several processes where a metric allows it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from kontext_fast.datasets.base import Item
from kontext_fast.datasets.shapes import held_out
from kontext_fast.errors import InvalidInput
from kontext_fast.metrics.base import Case, Metric, NotMeasured, Role, Setting, discover
from kontext_fast.metrics.shapes_judge import ShapesJudge
from kontext_fast.records.lock import locked_folder
from kontext_fast.records.schema import MetricFacts, Record, Score
from kontext_fast.records.store import ResultStore, read_stored_image

_CHUNK = 16
"""Outputs whose images are in memory at once."""
_WORTH_A_PROCESS = 64
"""Outputs that take about as long to score as a process takes to start."""

Value = tuple[float | bool | None, str | None]
"""A score and its note."""


@dataclass(frozen=True, kw_only=True)
class StoredOutput:
    """An output on disk, with what it is compared with."""

    item: Item
    seed: int
    image: str
    """Hash of the stored image."""
    file: Path
    reference_file: Path | None = None
    latents_file: Path | None = None
    """A .npy file, which need not exist."""
    reference_latents_file: Path | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Outputs with the same key have the same score in a metric that needs no reference."""
        return self.item.id, self.image

    def score(self, metric: str, value: float | bool | None, note: str | None = None) -> Score:
        """What a record holds of this output."""
        return Score(item=self.item.id, seed=self.seed, image=self.image, metric=metric, value=value, note=note)

    def load(self) -> Case:
        """Raises InvalidInput where an image is missing."""
        output = _open(self.file)
        reference = None if self.reference_file is None else _open(self.reference_file)
        if reference is None or reference.size != output.size:
            return Case(self.item, output)
        return Case(self.item, output, reference, _latents(self.latents_file), _latents(self.reference_latents_file))


class Scorer:
    """The metrics that can be measured for one checkpoint and its items."""

    def __init__(
        self, setting: Setting, items: Collection[Item], metrics: Iterable[type[Metric]] | None = None
    ) -> None:
        """`metrics` are all known ones by default; `facts` says which of them cannot be measured here, and why."""
        self._metrics: list[Metric] = []
        chosen = discover().values() if metrics is None else metrics
        self.facts: tuple[MetricFacts, ...] = tuple(self._prepare(metric(setting), items) for metric in chosen)

    def _prepare(self, metric: Metric, items: Collection[Item]) -> MetricFacts:
        """Keep the metric if it can be measured here."""
        try:
            if metric.role is Role.QUALITY and metric.setting.random_weights:
                raise NotMeasured("the weights are random")
            for need in metric.needs:
                if need.of_item and not any(need.met(Case(item, item.image)) for item in items):
                    raise NotMeasured(f"no item comes with {need.what}")
            metric.prepare()
        except NotMeasured as reason:
            return MetricFacts(name=metric.name, not_measured=f"Not measured: {reason}.")
        self._metrics.append(metric)
        model, weights_sha256 = metric.model() or (None, None)
        return MetricFacts(name=metric.name, model=model, weights_sha256=weights_sha256)

    def score(
        self, outputs: Mapping[str, Sequence[StoredOutput]], on_progress: Callable[[int], None] = lambda _: None
    ) -> Iterator[tuple[str, list[Score]]]:
        """The scores of one group of `outputs` after the other, each with the group's name.

        A metric gives no score for an output that lacks what the metric needs. `on_progress` gets the number of outputs
        scored since the last call. Raises InvalidInput where an image is missing.
        """
        parallel = self._score_in_processes([output for group in outputs.values() for output in group])
        for name, group in outputs.items():
            scores: list[Score] = []
            for start in range(0, len(group), _CHUNK):
                chunk = group[start : start + _CHUNK]
                values = _values(self._metrics, chunk, [parallel.get(output.key, {}) for output in chunk])
                scores += [
                    output.score(metric.name, *by_metric[metric.name])
                    for metric in self._metrics
                    for output, by_metric in zip(chunk, values, strict=True)
                    if metric.name in by_metric
                ]
                on_progress(len(chunk))
            yield name, scores

    def _score_in_processes(self, outputs: Sequence[StoredOutput]) -> dict[tuple[str, str], dict[str, Value]]:
        """Values of the parallel metrics by the key of the output; empty where more processes do not pay off."""
        metrics = [metric for metric in self._metrics if metric.parallel]
        distinct = list({output.key: output for output in outputs}.values()) if metrics else []
        workers = min(_processors(), len(distinct) // _WORTH_A_PROCESS)
        if workers < 2:
            return {}
        shares = [distinct[start::workers] for start in range(workers)]
        with ThreadPoolExecutor(workers) as pool:
            answers = pool.map(partial(_run_process, metrics), shares)
            return {
                output.key: by_metric
                for share, answer in zip(shares, answers, strict=True)
                for output, by_metric in zip(share, answer, strict=bool(answer))
            }


def judge_benchmark(store: ResultStore) -> None:
    """Append the answers of the judge of the shapes world to the records of checkpoints that have learned it.

    Raises InvalidInput where a stored image or an item is missing, and where another process writes into the folder.
    """
    with locked_folder(store.folder, "judge"):
        result = store.load()
        items = {item.id: item for item in held_out(len(result.items), result.seed)}
        judges = [metric for metric in discover().values() if issubclass(metric, ShapesJudge)]
        scorer = Scorer(Setting(has_judge=True), items.values(), judges)
        judged = [record for record in result.records if record.checkpoint and record.checkpoint.has_judge]
        outputs = {record.run_id: list(_measured_outputs(record, items, store)) for record in judged}
        for run_id, scores in scorer.score({run_id: group for run_id, group in outputs.items() if group}):
            store.add_scores(run_id, scores)


def _measured_outputs(record: Record, items: Mapping[str, Item], store: ResultStore) -> Iterator[StoredOutput]:
    for measurement in record.measurements:
        for sample in measurement.samples:
            if sample.warmup or not sample.images:
                continue
            if sample.item not in items:
                raise InvalidInput(
                    f"Item {sample.item} is not one of the shapes world's; measure again with this version."
                )
            for image in sample.images:
                file = store.image_path(image)
                yield StoredOutput(item=items[sample.item], seed=sample.seed, image=image, file=file)


def _values(
    metrics: Sequence[Metric], outputs: Sequence[StoredOutput], known: Sequence[Mapping[str, Value]]
) -> list[dict[str, Value]]:
    """By metric for each output, with what is `known` of it already."""
    cases = [output.load() for output in outputs]
    values = [dict(by_metric) for by_metric in known]
    for metric in metrics:
        todo = {
            case: by_metric
            for case, by_metric in zip(cases, values, strict=True)
            if metric.name not in by_metric and all(need.met(case) for need in metric.needs)
        }
        if todo:
            scored = zip(todo.values(), metric.scores(list(todo)), metric.notes(list(todo)), strict=True)
            for by_metric, score, note in scored:
                by_metric[metric.name] = score, note
    return values


def _run_process(metrics: Sequence[Metric], outputs: Sequence[StoredOutput]) -> list[dict[str, Value]]:
    """Values of `outputs` from an interpreter of its own; empty where that fails, so that they are scored in this
    process, where the error is seen.

    No fork, since this process may hold a GPU and threads of torch, and no spawned worker of multiprocessing, which
    would run the caller's script again where its main part is not guarded.
    """
    completed = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import score_stdin; score_stdin()"],
        input=pickle.dumps((metrics, outputs)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        check=False,
    )
    return pickle.loads(completed.stdout) if completed.returncode == 0 else []


def score_stdin() -> None:
    """The other process: pickled metrics and outputs on stdin, their values on stdout."""
    metrics, outputs = pickle.loads(sys.stdin.buffer.read())
    values: list[dict[str, Value]] = []
    for start in range(0, len(outputs), _CHUNK):
        chunk = outputs[start : start + _CHUNK]
        values += _values(metrics, chunk, [{}] * len(chunk))
    sys.stdout.buffer.write(pickle.dumps(values))


def _processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open(file: Path) -> Image.Image:
    try:
        return read_stored_image(file).convert("RGB")
    except FileNotFoundError:
        raise InvalidInput(
            f"The output {file.name} is missing from the result folder; run the command that wrote it again."
        ) from None


def _latents(file: Path | None) -> npt.NDArray[np.float32] | None:
    if file is None or not file.is_file():
        return None
    try:
        array: npt.NDArray[np.float32] = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise InvalidInput(f"The latents {file} are cut off; go on with --resume to make them again.") from None
    return array
