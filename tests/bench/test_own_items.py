"""A benchmark on the user's own images, instructions, seed and LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kontext_fast.bench.suites import Suite
from kontext_fast.bench.workloads import tasks, workload
from kontext_fast.cli.main import run
from kontext_fast.datasets import read_dataset
from kontext_fast.datasets.folder import read_pairs
from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import Cell
from kontext_fast.records.store import ResultStore
from tests.pipelines import picture, small_pipeline
from tests.server.loras import write_lora

SUITE = Suite(
    name="mine",
    presets=("baseline",),
    rounds=1,
    items=2,
    calls=2,
    max_warmup=0,
    stable_within=0.05,
    sizes=("native",),
    steps=(1,),
    guidance=2.5,
    deadline_s=60,
    seed=5,
)
CELL = Cell(mode="edit", size="native", steps=1, batch=1)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return small_pipeline()


def photo(width: int, height: int, seed: int) -> Image.Image:
    return picture(seed).resize((width, height))


def test_own_items_are_timed_with_their_seeds(pipe: Any) -> None:
    dataset = read_pairs([(photo(64, 64, seed), f"make it {seed}") for seed in range(3)])
    own = tasks(pipe, CELL, SUITE, dataset)
    assert [task.item.id for task in own] == [item.id for item in dataset.items[:2]]
    assert [task.request.seed for task in own] == [5, 6]
    assert own[0].request.image.tobytes() == dataset.items[0].image.tobytes()
    assert workload(pipe, CELL, own).items == tuple(item.id for item in dataset.items[:2])


def test_items_of_one_size_are_timed_together(pipe: Any) -> None:
    wide = [(photo(96, 64, seed), "make it red") for seed in range(2)]
    dataset = read_pairs([(photo(64, 64, 7), "make it red"), *wide])
    own = tasks(pipe, CELL, SUITE, dataset)
    assert {task.request.image.size for task in own} == {(96, 64)}
    three = SUITE.override(items=3)
    with pytest.raises(InvalidInput, match=r"at most 2 are run at one, .*--items 2"):
        tasks(pipe, CELL, three, dataset)
    # Another size of the output makes no input of another shape the same work.
    assert len(tasks(pipe, CELL.model_copy(update={"size": "128x128"}), SUITE, dataset)) == 2


def test_text_to_image_keeps_its_captions(pipe: Any) -> None:
    cell = CELL.model_copy(update={"mode": "text-to-image"})
    dataset = read_pairs([(picture(), "make it red")])
    assert all(task.request.image is None for task in tasks(pipe, cell, SUITE, dataset))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_command_measures_own_items_with_a_lora(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    Path("mine").mkdir()
    for seed in range(2):
        photo(64, 64, seed).save(f"mine/{seed}.png")
        Path(f"mine/{seed}.txt").write_text(f"make the background {('red', 'blue')[seed]}")
    Path("mine/notes.md").write_text("not an item")
    write_lora(tmp_path / "style.safetensors")
    options = ["--checkpoint", "tiny", "--device", "cpu", "--dataset", "mine", "--lora", "style.safetensors:0.5"]
    size = ["--preset", "baseline", "--steps", "1", "--rounds", "1", "--warmup", "0", "--no-control", "--seed", "9"]
    assert run(["bench", *options, *size, "--out", "out", "--json"]) == 0
    out, err = capfd.readouterr()
    assert "notes.md is left out" in err
    assert [row["status"] for row in json.loads(out.splitlines()[-1])["runs"]] == ["ok"]
    result = ResultStore(Path("out")).load()
    assert {item.id for item in result.items} == {item.id for item in read_dataset(Path("mine")).items}
    assert result.seed == 9
    (record,) = result.records
    assert record.checkpoint is not None
    assert record.checkpoint.name == "tiny with style.safetensors:0.5"
    # The judge knows the world of shapes alone.
    assert record.scores == ()
    assert {sample.seed for sample in record.measurements[0].samples} == {9, 10}
    assert "--dataset mine --lora style.safetensors:0.5" in result.command
    assert str(tmp_path) not in result.model_dump_json()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dataset", "nowhere"], "no data set nowhere"),
        (["--lora", "style.safetensors:inf"], "PATH"),
        (["--roofline", "--lora", "style.safetensors"], "leave them out"),
    ],
)
def test_mistakes_are_refused_before_any_run(
    options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["bench", "--checkpoint", "tiny", *options]) == 2
    assert words in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
