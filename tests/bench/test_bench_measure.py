"""Measuring cells on the bundled checkpoint, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kontext_fast.bench.measure import Bench, graphs_compiled
from kontext_fast.bench.suites import read_suite
from kontext_fast.bench.workloads import tasks
from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.load import load
from kontext_fast.records.schema import Cell, Measurement, StoredItem
from kontext_fast.records.store import ResultStore

EDIT = Cell(mode="edit", size="64x64", steps=2, batch=1)
WIDE = Cell(mode="edit", size="80x48", steps=1, batch=1)
BATCH = Cell(mode="edit", size="64x64", steps=2, batch=3)
TEXT = Cell(mode="text-to-image", size="64x64", steps=2, batch=1)
SUITE = read_suite("quick").resolve("tiny").override(items=2, calls=2, max_warmup=1, seed=5)

Measured = dict[Cell | None, tuple[Measurement, tuple[StoredItem, ...]]]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load("tiny", device="cpu").pipe


@pytest.fixture(scope="module")
def measured(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Measured, Path]:
    folder = tmp_path_factory.mktemp("measure")
    bench = Bench(pipe, SUITE, store=ResultStore(folder))
    cells = [EDIT, WIDE, BATCH, TEXT]
    measurements = bench.measure_all(cells, on_progress=lambda _: None)
    return {measurement.cell: (measurement, items) for measurement, items in measurements}, folder


def test_each_cell_is_one_measurement_of_its_workload(measured: tuple[Measured, Path]) -> None:
    of, _ = measured
    assert list(of) == [EDIT, WIDE, BATCH, TEXT]
    for cell, (measurement, _) in of.items():
        assert cell is not None
        workload = measurement.workload
        assert (workload.mode, workload.steps, workload.batch) == (cell.mode, cell.steps, cell.batch)
        assert f"{workload.width}x{workload.height}" == cell.size
        assert [sample.warmup for sample in measurement.samples] == [True, True, False, False]
    assert [measurement.first_call_s is None for measurement, _ in of.values()] == [False, True, True, True]


def test_text_to_image_has_captions_and_no_reference(measured: tuple[Measured, Path]) -> None:
    of, _ = measured
    measurement, items = of[TEXT]
    workload = measurement.workload
    assert (workload.reference_width, workload.reference_tokens) == (None, 0)
    assert {item.kind for item in items} == {"caption"}
    assert all(item.image is None for item in items)
    assert not {item.id for item in items} & {item.id for item in of[EDIT][1]}
    assert all("vae_encode" not in sample.stages_s for sample in measurement.samples)
    # The judge scores edits only, so no image is kept.
    assert all(not sample.images for sample in measurement.samples)


def test_batch_starts_with_the_image_of_the_single_call(measured: tuple[Measured, Path]) -> None:
    of, folder = measured
    single, batch = of[EDIT][0], of[BATCH][0]
    assert [len(sample.images) for sample in batch.samples] == [0, 0, 3, 3]
    assert batch.workload.seeds == (5, 6, 7, 6, 7, 8)
    assert single.workload.seeds == (5, 6)
    first = [measurement.samples[2].images[0] for measurement in (single, batch)]
    pixels = [load_pixels(ResultStore(folder).image_path(digest)) for digest in first]
    # Batched kernels round differently; another image would differ by far more.
    assert (pixels[0] - pixels[1]).abs().max() <= 2


def load_pixels(path: Path) -> torch.Tensor:
    from PIL import Image

    with Image.open(path) as image:
        return torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).int()


def test_cpu_samples_have_no_gpu_facts(measured: tuple[Measured, Path]) -> None:
    for measurement, _ in measured[0].values():
        for sample in measurement.samples:
            assert sample.gpu is None
            assert sample.memory.allocated_peak_bytes is None
            assert sample.memory.device_process_peak_bytes is None
            assert sample.graphs_compiled == 0


def test_samples_count_the_graphs_compiled_during_a_call(pipe: Any) -> None:
    before = graphs_compiled()
    transformer = pipe.transformer
    plain = transformer.forward
    torch._dynamo.reset()
    transformer.forward = torch.compile(plain, backend="eager")
    try:
        bench = Bench(pipe, SUITE.override(items=1, calls=1), store=None)
        ((measurement, _), (other, _)) = bench.measure_all([EDIT, WIDE], on_progress=lambda _: None)
    finally:
        del transformer.forward
    counts = [[sample.graphs_compiled for sample in cell.samples] for cell in (measurement, other)]
    # Only the first call of each size compiles.
    assert counts[0][0]
    assert counts[1][0]
    assert counts[0][-1] == counts[1][-1] == 0
    assert graphs_compiled() - before == sum(count or 0 for row in counts for count in row)


def test_too_long_captions_are_left_out(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    readable = [task.request.instruction for task in tasks(pipe, TEXT, SUITE)]
    lengths = [len(pipe.tokenizer_2(text).input_ids) for text in readable]
    assert max(lengths) <= pipe.tokenizer_2.model_max_length
    monkeypatch.setattr(pipe.tokenizer_2, "model_max_length", 2)
    with pytest.raises(InvalidInput, match="leave text-to-image out"):
        tasks(pipe, TEXT, SUITE)


def test_cells_of_a_mode_have_the_same_items(pipe: Any) -> None:
    ids = [[task.item.id for task in tasks(pipe, cell, SUITE)] for cell in (EDIT, WIDE, BATCH)]
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids[0])) == 2
