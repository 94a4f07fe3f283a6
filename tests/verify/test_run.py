"""Whole verifications on a small checkpoint: records, resumption and interruption."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import kontext_fast.pipeline.edit
from kontext_fast.datasets.shapes import held_out_dataset
from kontext_fast.errors import Cancelled, InvalidInput, OutOfMemory, Refused
from kontext_fast.metrics.base import Control
from kontext_fast.records.schema import Record, ResultFile
from kontext_fast.verify.analysis import analyze
from kontext_fast.verify.conditions import CONDITIONS, condition_arm
from kontext_fast.verify.controls import FLOOR_ARMS, OTHER_PRECISION
from kontext_fast.verify.frontier import frontier
from kontext_fast.verify.image_generator import TIMED_EDITS
from kontext_fast.verify.journal import FOLDER
from kontext_fast.verify.request import Request
from kontext_fast.verify.run import Progress, verify
from kontext_fast.verify.verdict import Level
from tests.verify import faulty_optimizations as faulty
from tests.verify.fake_edits import write_dataset

pytestmark = pytest.mark.usefixtures("one_item_per_condition")


@pytest.fixture(scope="module")
def request_of(dense_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Request:
    dataset = write_dataset(tmp_path_factory.mktemp("data"), 3)
    preset = faulty.preset(faulty.Rounded())
    return Request(
        presets=(preset,), checkpoint=str(dense_checkpoint), dataset=dataset, control_items=2, steps=2, device="cpu"
    )


@pytest.fixture(scope="module")
def result(request_of: Request, tmp_path_factory: pytest.TempPathFactory) -> ResultFile:
    return verify(request_of, tmp_path_factory.mktemp("whole") / "out")


def _arms(result: ResultFile) -> dict[str, Record]:
    return {record.arm.name: record for record in result.records if record.arm}


def _outputs(result: ResultFile) -> set[tuple[str, str, int, str | None]]:
    return {
        (name, output.item, output.seed, output.image)
        for name, record in _arms(result).items()
        for output in record.outputs
    }


def test_every_arm_is_a_record_with_scores(result: ResultFile, request_of: Request) -> None:
    arms = _arms(result)
    assert set(arms) == {
        "baseline",
        "rounded",
        "rounded, other order",
        *(condition_arm(preset, condition) for preset in ("baseline", "rounded") for condition in CONDITIONS),
        *FLOOR_ARMS,
        *(control.value for control in Control),
    }
    assert result.command == "verify"
    assert all(record.status == "ok" and record.scores for record in arms.values())
    assert len(arms["baseline"].outputs) == len(arms["rounded"].outputs) == 3 * 2
    assert len(arms["re-run"].outputs) == 2 * 2
    assert len(arms["other batch position"].outputs) == 2 * 2
    assert [len(output.step_kinds) for output in arms["half the steps"].outputs] == [1] * 4
    assert not any(record.measurements for record in arms.values()), "a verification makes no claim about time"


def test_margins_are_in_the_records(result: ResultFile, request_of: Request) -> None:
    verification = result.verification
    assert verification is not None
    assert verification.margins == request_of.margins.model_dump(mode="json")
    assert verification.margins_sha256 == request_of.margins.sha256
    assert len(verification.control_items) == 2


def test_rerun_is_identical_and_controls_differ(result: ResultFile) -> None:
    images = {
        name: {(output.item, output.seed): output.image for output in record.outputs}
        for name, record in _arms(result).items()
    }
    again = images["re-run"]
    assert {key: images["baseline"][key] for key in again} == again
    for control in set(Control) - {Control.CACHE_X4}:
        degraded = images[control.value]
        assert degraded
        assert all(images["baseline"][key] != image for key, image in degraded.items()), control


def test_floor_arms_are_ordered_and_below_half_the_steps(result: ResultFile) -> None:
    def error(arm: str) -> float:
        values = [score.value for score in _arms(result)[arm].scores if score.metric == "latent_error"]
        return max(float(value) for value in values if value is not None)

    assert 0 < error("other attention backend") < error(OTHER_PRECISION) < 0.2 * error("half the steps")


def test_too_few_items_cannot_be_equivalent(result: ResultFile) -> None:
    (preset,) = analyze(result).presets
    assert preset.verdict.level in (Level.NOT_MEASURED, Level.CANNOT_TELL)


def _error(result: ResultFile, arm: str) -> float:
    values = [score.value for score in _arms(result)[arm].scores if score.metric == "latent_error"]
    return max(float(value) for value in values if value is not None)


def test_batch_size_changes_outputs_by_rounding_only(request_of: Request, result: ResultFile, tmp_path: Path) -> None:
    batched = verify(replace(request_of, batch=4), tmp_path / "out")
    arms, alone = _arms(batched), _arms(result)
    verification = batched.verification
    assert verification is not None
    assert verification.batch == 4
    for name in (*arms,):
        assert [(output.item, output.seed) for output in arms[name].outputs] == [
            (output.item, output.seed) for output in alone[name].outputs
        ], name
    # Control items have calls of their own, so that a re-run makes the same calls.
    assert _error(batched, "re-run") == 0
    assert 0 < _error(batched, "other batch position") < 0.05 * _error(batched, "half the steps")
    for name in ("rounded", "half the steps", "swapped instructions"):
        assert _error(batched, name) == pytest.approx(_error(result, name), rel=0.1, abs=1e-5)


@pytest.mark.slow
def test_partly_recorded_batch_is_repeated_whole(
    request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(request_of, batch=6, control_items=3)
    whole = verify(request, tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(Cancelled):
        verify(request, out, on_progress=_Stop(2))
    journal = out / FOLDER / "outputs.jsonl"
    # Two items of the first call were to be written, and one was.
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:2]))
    assert _outputs(verify(request, out, resume=True)) == _outputs(whole)


def test_frontier_times_edits_and_adds_fewer_steps(request_of: Request, tmp_path: Path) -> None:
    result = verify(replace(request_of, frontier=True, batch=6), tmp_path / "out")
    arms = _arms(result)
    assert arms["1 step"].arm is not None
    assert arms["1 step"].arm.role == "steps"
    assert len(arms["1 step"].outputs) == 3 * 2
    assert {len(output.step_kinds) for output in arms["1 step"].outputs} == {1}
    timed = {name for name, record in arms.items() if record.edits_s}
    assert timed == {"baseline", "rounded", "1 step", "re-run"}
    assert all(
        len(record.edits_s) == TIMED_EDITS and min(record.edits_s) > 0 for record in arms.values() if record.edits_s
    )
    points = frontier(result, analyze(result))
    assert points is not None
    assert [point.name for point in points.points] == ["baseline", "rounded", "1 step"]


class _Stop:
    """Interrupts like Ctrl-C after so many items."""

    def __init__(self, after: int) -> None:
        self._after = after

    def __call__(self, progress: Progress) -> None:
        if progress.arm != "scoring" and progress.done == self._after:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("after", "of_them"), [pytest.param(1, 1, marks=pytest.mark.slow), (5, 3 + 2 + 2)])
def test_resume_repeats_and_loses_no_call(
    after: int, of_them: int, request_of: Request, result: ResultFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    edit = kontext_fast.pipeline.edit.edit_together

    def counting(pipe: Any, requests: Any, **more: Any) -> Any:
        calls.append(len(requests))
        return edit(pipe, requests, **more)

    monkeypatch.setattr("kontext_fast.pipeline.edit.edit_together", counting)
    out = tmp_path / "out"
    with pytest.raises(Cancelled, match="--resume --out"):
        verify(request_of, out, on_progress=_Stop(after))
    assert len(calls) == of_them
    again = verify(request_of, out, resume=True)
    # A call an item: baseline, the preset, its other order, two floors, three controls, and the other precision; each
    # image by itself at the other position, and under both conditions of one item, of baseline and the preset.
    conditions = 2 * 2
    assert len(calls) == 3 + 3 + 2 + 2 * 2 + 3 * 2 + 2 + 2 * 2 + 2 * conditions
    assert sum(calls) == 2 * (3 + 3 + 2 * 8 + conditions)
    assert _outputs(again) == _outputs(result)
    lines = (out / FOLDER / "outputs.jsonl").read_text().splitlines()[1:]
    recorded = [(line["arm"], line["item"]) for line in map(json.loads, lines)]
    assert len(recorded) == len(set(recorded)) == 3 + 3 + 2 * 8 + conditions


def test_resume_of_a_finished_verification_does_nothing(
    request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = verify(request_of, tmp_path / "out")

    def refusing(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing was left to make")

    monkeypatch.setattr("kontext_fast.pipeline.edit.edit_together", refusing)
    assert verify(request_of, tmp_path / "out", resume=True) == once


def test_resume_with_other_options_is_refused(request_of: Request, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        verify(request_of, tmp_path / "out", on_progress=_Stop(1))
    with pytest.raises(InvalidInput, match="differs in steps"):
        verify(replace(request_of, steps=3), tmp_path / "out", resume=True)


def test_refused_preset_is_not_measured_others_run(request_of: Request, tmp_path: Path) -> None:
    refused = faulty.preset(faulty.NeedsAnotherMachine())
    request = replace(request_of, presets=(refused, *request_of.presets))
    analysis = analyze(verify(request, tmp_path / "out"))
    by_name = {preset.preset: preset for preset in analysis.presets}
    assert by_name["needs another machine"].verdict.level is Level.NOT_MEASURED
    assert "get another machine" in by_name["needs another machine"].verdict.reason
    assert by_name["rounded"].evidence is not None


@pytest.mark.slow
def test_failing_preset_is_given_up_with_its_reason(
    request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kontext_fast.verify.image_generator.MAX_FAILURES", 1)
    faulty.FailsAlways.tried.clear()
    request = replace(request_of, presets=(faulty.preset(faulty.FailsAlways()),))
    result = verify(request, tmp_path / "out")
    # Once for the preset, of three items, and once each for its other order of two items, and two conditions of one.
    assert len(faulty.FailsAlways.tried) == 4
    record = _arms(result)["fails always"]
    assert (record.status, record.reason) == ("crash", "RuntimeError: a kernel does not compile")
    assert [output.failure for output in record.outputs] == ["RuntimeError: a kernel does not compile"] * 6
    (preset,) = analyze(result).presets
    assert preset.verdict.level is Level.NOT_MEASURED
    assert "does not compile" in preset.verdict.reason


@pytest.mark.parametrize("error", [OutOfMemory("The GPU memory ran out; free some."), Refused("Not here; go on.")])
def test_unmeasurable_floor_arm_is_left_out_with_reason(
    error: Refused, request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: Any) -> None:
        raise error

    monkeypatch.setattr("kontext_fast.verify.arm_pipeline.use_other_precision", failing)
    result = verify(request_of, tmp_path / "out")
    record = _arms(result)[OTHER_PRECISION]
    assert (record.status, record.reason) == ("oom" if isinstance(error, OutOfMemory) else "refused", str(error))
    assert not record.outputs
    (preset,) = analyze(result).presets
    assert all(comparison.arm != OTHER_PRECISION for comparison in preset.verdict.floor)


@pytest.mark.parametrize("batch", [pytest.param(2, marks=pytest.mark.slow), 8])
def test_unusable_item_spares_the_others(batch: int, request_of: Request, tmp_path: Path) -> None:
    lines = [
        {"image": f"{index}.png", "instruction": text} for index, text in enumerate(["make it red", "word " * 400])
    ]
    for index, item in enumerate(held_out_dataset(2, 9).items):
        item.image.resize((64, 64)).save(tmp_path / f"{index}.png")
    Image.new("RGB", (2, 90)).save(tmp_path / "thin.png")
    lines += [{"image": "thin.png", "instruction": "make it red"}, {"image": "1.png", "instruction": "make it blue"}]
    (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, lines)))
    request = replace(request_of, dataset=tmp_path / "edits.jsonl", control_items=4, batch=batch)
    result = verify(request, tmp_path / "out")
    failed = {output.item: output.failure for output in _arms(result)["baseline"].outputs if output.image is None}
    assert len(failed) == 2, failed
    assert all(reason and "/" not in reason for reason in failed.values())
    (preset,) = analyze(result).presets
    assert preset.evidence is not None
    assert preset.evidence.failures == ()
    assert all(len(fidelity.to_baseline) == 2 for fidelity in preset.evidence.fidelity)


def test_real_checkpoint_needs_a_data_set(request_of: Request, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="--dataset"):
        verify(replace(request_of, dataset=None), tmp_path / "out")
    assert not (tmp_path / "out").exists()
