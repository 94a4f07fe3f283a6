"""A pipeline and items of the caller's own: the verdict, and that the pipeline is as before."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

import kontext_fast
from kontext_fast.datasets.folder import read_pairs
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.acceleration import accelerate, current
from kontext_fast.optimizations.techniques.fuse_qkv import FuseQKV
from kontext_fast.records.store import ResultStore
from kontext_fast.verify.verdict import Level
from tests.pipelines import picture, small_pipeline
from tests.verify import faulty_optimizations as faulty

pytestmark = pytest.mark.usefixtures("one_item_per_condition")

PAIRS = [(picture(0), "make the background red"), (picture(1), "make the background blue")]


def _weights(pipe: Any) -> str:
    content = hashlib.sha256()
    for name, value in sorted(pipe.transformer.state_dict().items()):
        content.update(f"{name} {value.dtype}".encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def _attributes(pipe: Any) -> set[str]:
    # diffusers leaves an empty registry of hooks where a cache was.
    return set(vars(pipe.transformer)) - {"_diffusers_hook"}


def test_own_pipeline_with_merged_lora_gets_a_verdict(tmp_path: Path) -> None:
    pipe = small_pipeline()
    # As a merged LoRA does: the verdict is on these weights, not on those of any checkpoint.
    pipe.transformer.proj_out.weight.data.mul_(1.01)
    weights, attributes = _weights(pipe), _attributes(pipe)
    result = kontext_fast.verify_preset(pipe, [FuseQKV()], PAIRS, steps=1, out=tmp_path / "out")
    assert (result.preset, result.level, result.passes) == ("fuse_qkv", Level.IDENTICAL, True)
    assert repr(result).startswith("fuse_qkv: L0 identical. ")
    assert "fuse_qkv: L0 identical" in result._repr_html_()
    assert current(pipe) is None
    assert (_weights(pipe), _attributes(pipe)) == (weights, attributes)
    stored = ResultStore(tmp_path / "out").load()
    assert {item.instruction for item in stored.items} == {instruction for _, instruction in PAIRS}
    checkpoint = stored.records[0].checkpoint
    assert checkpoint is not None
    assert (checkpoint.kind, checkpoint.has_judge) == ("pipeline", False)
    assert str(tmp_path) not in stored.model_dump_json()


def test_error_in_the_middle_leaves_the_pipeline_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = small_pipeline()

    def interrupted(*_: Any, **__: Any) -> Any:
        assert current(pipe) is not None
        raise KeyboardInterrupt

    monkeypatch.setattr("kontext_fast.verify.recorder.ArmRecorder.add", interrupted)
    with pytest.raises(kontext_fast.errors.Cancelled, match="interrupted"):
        kontext_fast.verify_preset(pipe, "faithful", PAIRS, steps=1)
    assert current(pipe) is None


def test_what_cannot_be_verified_is_refused() -> None:
    pipe = small_pipeline()
    with accelerate(pipe, "faithful", quiet=True), pytest.raises(InvalidInput, match=r"revert\(\)"):
        kontext_fast.verify_preset(pipe, "fuse_qkv", PAIRS)
    with pytest.raises(InvalidInput, match="no data set nowhere"):
        kontext_fast.verify_preset(pipe, "fuse_qkv", "nowhere")
    with pytest.raises(InvalidInput, match="no preset 'fastest'"):
        kontext_fast.verify_preset(pipe, "fastest", PAIRS)


def test_pairs_are_items_by_content() -> None:
    dataset = read_pairs([*PAIRS, PAIRS[0]])
    assert [item.id for item in dataset.items] == sorted(item.id for item in dataset.items)
    assert len(dataset.items) == 2
    for pairs, words in (
        ([], "no items"),
        ([("only",)], "Pair 1 is not"),
        ([PAIRS[0], ("gone.png", "make it red")], "Pair 2: .*gone.png"),
        ([(picture(), " ")], "Pair 1 is not"),
    ):
        with pytest.raises(InvalidInput, match=words):
            read_pairs(pairs)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_spoiled_preset_fails() -> None:
    pairs = [(picture(index), f"make the background {color}") for index, color in enumerate(("red", "blue", "green"))]
    result = kontext_fast.verify_preset(small_pipeline(), faulty.preset(faulty.FailsAlways()), pairs, steps=2)
    assert (result.level, result.passes) == (Level.NOT_MEASURED, False)
