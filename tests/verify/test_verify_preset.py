"""A pipeline and items of the caller's own: the verdict, and that the pipeline is as before."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
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
from kontext_fast.verify.comparisons import Outcome
from kontext_fast.verify.margins import read_margins
from kontext_fast.verify.metric_rows import metric_rows
from kontext_fast.verify.run import Progress
from kontext_fast.verify.verdict import Level, QualityVerdict
from kontext_fast.verify.verify_preset import PresetVerdict
from tests.pipelines import SIDE, picture, small_pipeline
from tests.verify import faulty_optimizations as faulty
from tests.verify.fake_edits import write_dataset
from tests.verify.test_metric_rows import LOSS, quality

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
    pipe.vae.register_to_config(sample_size=SIDE)
    # As a merged LoRA does: the verdict is on these weights, not on those of any checkpoint.
    pipe.transformer.proj_out.weight.data.mul_(1.01)
    weights, attributes = _weights(pipe), _attributes(pipe)
    pairs = [*PAIRS, (picture(2), "make the background green")]
    options: dict[str, Any] = {"items": 2, "steps": 1, "guidance": 3.0, "seed": 7}
    result = kontext_fast.verify_preset(pipe, [FuseQKV()], pairs, **options, out=tmp_path / "out")
    assert (result.preset, result.level, result.passes) == ("fuse_qkv", Level.IDENTICAL, True)
    assert repr(result).startswith("fuse_qkv: L0 identical. ")
    assert "fuse_qkv: L0 identical" in result._repr_html_()
    assert current(pipe) is None
    assert (_weights(pipe), _attributes(pipe)) == (weights, attributes)
    stored = ResultStore(tmp_path / "out").load()
    # As many as were asked for of three, the first ones by their ids.
    assert [item.id for item in stored.items] == [item.id for item in read_pairs(pairs).items][:2]
    verification = stored.verification
    assert verification is not None
    assert (verification.steps, verification.guidance, verification.seeds) == (1, 3.0, (7, 8))
    assert (stored.command, stored.seed) == ("verify_preset", 7)
    assert any(line.startswith("clip_text: Not measured: ") for line in result.not_measured)
    checkpoint = stored.records[0].checkpoint
    assert checkpoint is not None
    assert (checkpoint.kind, checkpoint.has_judge) == ("pipeline", False)
    assert str(tmp_path) not in stored.model_dump_json()
    # The same items in another form, of which all outputs are there.
    again = partial(kontext_fast.verify_preset, pipe, [FuseQKV()], **options, out=str(tmp_path / "out"))
    seen: list[Progress] = []
    resumed = again(read_pairs(pairs), resume=True, weights=str(tmp_path / "models"), on_progress=seen.append)
    assert (resumed.verdict, resumed.rows) == (result.verdict, result.rows)
    assert {progress.arm for progress in seen} == {"scoring"}
    assert any("no weights in clip of the given folder" in line for line in resumed.not_measured)
    with pytest.raises(InvalidInput, match="already has records"):
        again(pairs)
    with pytest.raises(InvalidInput, match="differs in batch, seeds"):
        again(pairs, seeds=3, resume=True)
    with pytest.raises(InvalidInput, match="differs in dataset, items"):
        again(str(write_dataset(tmp_path / "data", 2)), resume=True)


def test_verdict_is_a_table_of_what_it_rests_on() -> None:
    few = quality(Level.CANNOT_TELL, replace(LOSS, outcome=Outcome.UNDECIDED, n=20, needed=63))
    verdict = PresetVerdict("mine", few, metric_rows(few, read_margins())[:2], ("clip: Not measured: <none>.",))
    assert repr(verdict).splitlines() == [
        "mine: cannot tell. Because.",
        "metric                     change  bound  margin  items  outcome",
        "judge_done                 -0.01   -0.04  -0.05   20     too few",
        "ssim / seed noise, median  0.10    0.20   0.50    20     pass",
        "Too few items to decide: try again with items=70.",
        "clip: Not measured: <none>.",
    ]
    assert verdict._repr_html_() == (
        "<p>mine: cannot tell. Because.<br><small>Too few items to decide: try again with items=70.</small>"
        "<br><small>clip: Not measured: &lt;none&gt;.</small></p><table>"
        "<tr><th>metric</th><th>change</th><th>bound</th><th>margin</th><th>items</th><th>outcome</th></tr>"
        "<tr><td>judge_done</td><td>-0.01</td><td>-0.04</td><td>-0.05</td><td>20</td><td>too few</td></tr>"
        "<tr><td>ssim / seed noise, median</td><td>0.10</td><td>0.20</td><td>0.50</td><td>20</td><td>pass</td></tr>"
        "</table>"
    )


def test_verdict_that_rests_on_no_comparison_is_a_sentence() -> None:
    verdict = PresetVerdict("<mine>", QualityVerdict(Level.EQUIVALENT, "Same & equal."), (), ())
    assert repr(verdict) == "<mine>: L1 numerically equivalent. Same & equal."
    assert verdict._repr_html_() == "<p>&lt;mine&gt;: L1 numerically equivalent. Same &amp; equal.</p>"
    assert (verdict.reason, verdict.passes) == ("Same & equal.", True)


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
    with pytest.raises(InvalidInput, match=r"The preset fuse_qkv\+fuse_qkv cannot be applied"):
        kontext_fast.verify_preset(pipe, [FuseQKV(), FuseQKV()], PAIRS)
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
