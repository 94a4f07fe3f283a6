"""Parts of a finished verification, made again after they were taken away: what a stop at any place leaves to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ImageFilter

import kontext_fast.pipeline.edit
from kontext_fast.datasets.base import Dataset
from kontext_fast.errors import Cancelled, InvalidInput, OutOfMemory, Refused
from kontext_fast.optimizations.acceleration import current
from kontext_fast.records.schema import Record, ResultFile
from kontext_fast.records.store import ResultStore, content_hash, image_hash, read_stored_image
from kontext_fast.verify import arms, converged_reference, image_generator, run
from kontext_fast.verify.conditions import CONDITIONS, condition_arm
from kontext_fast.verify.controls import BLUR_RADIUS, OTHER_POSITION
from kontext_fast.verify.converged import DISTANCE, DISTANCE_IN_FLOAT32, REFERENCE_ERROR
from kontext_fast.verify.converged_reference import converged_reference as reference_of
from kontext_fast.verify.converged_reference import reference_evaluations
from kontext_fast.verify.journal import FOLDER
from kontext_fast.verify.margins import read_margins
from kontext_fast.verify.request import Request
from kontext_fast.verify.run import Progress, verify
from tests.metrics.cases import FreeItem
from tests.pipelines import SIDE, picture, small_pipeline
from tests.verify import faulty_optimizations as faulty

ITEMS = tuple(
    FreeItem(
        id=f"{index:016x}",
        instruction=f"make it {color}",
        image=picture(index),
        target=picture(index + 10) if index else None,
        kind="colour",
        open=index == 1,
    )
    for index, color in enumerate(("red", "blue", "green", "white", "black"))
)
REFUSED = "needs another machine"


@contextmanager
def few_calls() -> Iterator[None]:
    """Fewer of what is repeated to be sure of a number that no test here looks at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arms, "CONDITION_ITEMS", 1)
        patch.setattr(image_generator, "WARM_UP_EDITS", 0)
        patch.setattr(image_generator, "TIMED_EDITS", 1)
        patch.setattr(converged_reference, "converged_reference", partial(reference_of, steps=4))
        patch.setattr(run, "reference_evaluations", partial(reference_evaluations, steps=4))
        yield


@dataclass
class Verified:
    """A result folder that a test may take parts of."""

    folder: Path
    request: Request

    def resume(self, on_progress: Callable[[Progress], None] | None = None, **changes: Any) -> ResultFile:
        request = replace(self.request, **changes)
        return verify(request, self.folder, resume=True, command="again", on_progress=on_progress)

    @property
    def result(self) -> ResultFile:
        return ResultStore(self.folder).load()

    def without(self, *names: str) -> None:
        """As before these arms were recorded."""
        kept = [record for record in self.result.records if record.arm and record.arm.name not in names]
        self.with_records(kept)

    def with_records(self, records: list[Record]) -> None:
        ResultStore(self.folder).write(self.result.model_copy(update={"records": tuple(records)}))

    def rewrite_journal(self, change: Callable[[dict[str, Any]], bool]) -> None:
        """`change` says of each line, which it may alter, whether it stays."""
        file = self.folder / FOLDER / "outputs.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            line.pop("sha256")
        kept = [line for line in lines if change(line)]
        file.write_text("".join(json.dumps({**line, "sha256": content_hash(line)}) + "\n" for line in kept))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Verified:
    pipe = small_pipeline()
    pipe.vae.register_to_config(sample_size=SIDE)
    request = Request(
        presets=(faulty.preset(faulty.Rounded()), faulty.preset(faulty.NeedsAnotherMachine())),
        pipe=pipe,
        dataset=Dataset("mine", ITEMS, ("line 6 of /home/somebody/edits.jsonl is left out: it is empty.",)),
        items=4,
        control_items=2,
        batch=4,
        steps=2,
        guidance=3.0,
        seed=7,
        converged_items=3,
        frontier=True,
    )
    folder = tmp_path_factory.mktemp("finished") / "out"
    with few_calls():
        verify(request, folder)
    return Verified(folder, request)


@pytest.fixture
def verified(finished: Verified, tmp_path: Path) -> Iterator[Verified]:
    with few_calls():
        yield Verified(Path(shutil.copytree(finished.folder, tmp_path / "out")), finished.request)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, int]]]:
    """The instruction and the seed of every image of each call of the pipeline."""
    made: list[list[tuple[str, int]]] = []
    edit = kontext_fast.pipeline.edit.edit_together

    def counting(pipe: Any, requests: Any, **more: Any) -> Any:
        made.append([(request.instruction, request.seed) for request in requests])
        return edit(pipe, requests, **more)

    monkeypatch.setattr("kontext_fast.pipeline.edit.edit_together", counting)
    return made


def _arms(result: ResultFile) -> dict[str, Record]:
    return {record.arm.name: record for record in result.records if record.arm}


def test_records_are_kept_unless_they_are_resumed(verified: Verified) -> None:
    before = verified.result
    with pytest.raises(InvalidInput, match=r"^The folder already has records; .* --resume"):
        verify(verified.request, verified.folder)
    assert verified.result == before


def test_file_says_what_all_arms_have_in_common(verified: Verified) -> None:
    result = verified.resume()
    before = _arms(verified.result)
    assert (result.command, result.suite, result.seed) == ("again", "verify", 7)
    margins = read_margins()
    assert result.suite_sha256 == margins.sha256
    images = ResultStore(verified.folder)
    for stored, item in zip(result.items, ITEMS[:4], strict=True):
        assert (stored.id, stored.instruction, stored.kind, stored.open) == (
            item.id,
            item.instruction,
            item.kind,
            item.open,
        )
        assert stored.image is not None
        assert np.array_equal(read_stored_image(images.image_path(stored.image)), np.asarray(item.image))
    assert result.items[0].target is None
    assert np.array_equal(
        read_stored_image(images.image_path(result.items[1].target or "")), np.asarray(ITEMS[1].target)
    )
    verification = result.verification
    assert verification is not None
    assert (verification.dataset, verification.steps, verification.guidance) == ("mine", 2, 3.0)
    assert (verification.seeds, verification.batch) == ((7, 8), 4)
    assert verification.control_items == tuple(item.id for item in ITEMS[:2])
    assert verification.margins == margins.model_dump(mode="json")
    assert verification.rejected == ("line 6 of .../edits.jsonl is left out: it is empty.",)
    assert _arms(result) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 3}, "steps"),
        ({"guidance": 2.0}, "guidance"),
        ({"seeds": 3}, "batch, seeds"),
        ({"batch": 2}, "batch"),
        ({"frontier": False}, "frontier"),
        ({"dataset": Dataset("yours", ITEMS)}, "dataset"),
        ({"dataset": Dataset("mine", ITEMS[1:])}, "items"),
        ({"items": 3}, "items"),
        ({"control_items": 3}, "control items"),
        ({"margins": read_margins().stricter(2)}, "margins"),
    ],
)
def test_resume_names_the_option_that_makes_other_outputs(
    changes: dict[str, Any], words: str, verified: Verified
) -> None:
    with pytest.raises(InvalidInput, match=f"differs in {words};"):
        verified.resume(**changes)


def test_resume_names_what_runs_otherwise(verified: Verified, monkeypatch: pytest.MonkeyPatch) -> None:
    def differs(**changes: Any) -> str:
        with pytest.raises(InvalidInput) as caught:
            verified.resume(**changes)
        return str(caught.value).removeprefix("The verification to resume differs in ").partition(";")[0]

    other = small_pipeline()
    other.vae.register_to_config(sample_size=SIDE)
    other.transformer.proj_out.weight.data.mul_(1.01)
    assert differs(pipe=other) == "weights"
    rounded, refused = verified.request.presets
    assert differs(presets=(replace(rounded, optimizations=(faulty.Untouched(),)), refused)) == "presets"
    assert differs(presets=(rounded, replace(refused, optimizations=(faulty.Untouched(),)))) == "presets"
    monkeypatch.setattr("kontext_fast.verify.run.__version__", "0.0.0")
    assert differs() == "version"


def test_call_that_lost_an_item_runs_whole_and_nothing_else_is_made(
    verified: Verified, calls: list[list[tuple[str, int]]]
) -> None:
    """In a smaller call an item would round otherwise. What is there of that call is not replaced."""
    before = verified.result
    lost = ("baseline", ITEMS[3].id)
    verified.rewrite_journal(lambda line: (line.get("arm"), line.get("item")) != lost)
    again = ("baseline", "rounded", OTHER_POSITION)
    verified.without(*again)
    seen: list[Progress] = []
    after = verified.resume(seen.append)
    timing = [[(ITEMS[0].instruction, 7)]] * 2
    assert calls == [[(item.instruction, seed) for item in ITEMS[2:4] for seed in (7, 8)], *timing]
    records = _arms(after)
    assert {name: record.outputs for name, record in records.items()} == {
        name: record.outputs for name, record in _arms(before).items()
    }
    others = {name: record.run_id for name, record in _arms(before).items() if name not in again}
    assert {name: record.run_id for name, record in records.items() if name not in again} == others
    assert [records[name].preset for name in again] == list(again)
    assert records["baseline"].checkpoint == _arms(before)["baseline"].checkpoint
    assert [[applied.name for applied in records[name].plan] for name in again] == [[], ["rounded"], []]
    assert [len(records[name].edits_s) for name in again] == [1, 1, 0]
    journal = (verified.folder / FOLDER / "outputs.jsonl").read_text().splitlines()
    assert sorted(
        (line["arm"], line["item"]) for line in map(json.loads, journal[1:]) if line["arm"] == "baseline"
    ) == [("baseline", item.id) for item in ITEMS[:4]]
    # Items of all arms that run the pipeline: baseline and its conditions, two presets with theirs and their other
    # order, one step, and seven floors and controls. One was left.
    total = (4 + 1 + 1) + 2 * (4 + 1 + 1 + 2) + 4 + 7 * 2
    assert [(progress.arm, progress.done, progress.total) for progress in seen if progress.arm != "scoring"] == [
        ("baseline", total - 1, total),
        ("baseline", total, total),
        ("rounded", total, total),
        (OTHER_POSITION, total, total),
    ]


def test_other_position_needs_a_second_image_in_a_call(verified: Verified, calls: list[list[tuple[str, int]]]) -> None:
    def of_single_images(line: dict[str, Any]) -> bool:
        line.get("setup", {}).update(batch=1)
        return line.get("arm") != OTHER_POSITION

    verified.rewrite_journal(of_single_images)
    verified.without(OTHER_POSITION)
    seen: list[Progress] = []
    record = _arms(verified.resume(seen.append, batch=1))[OTHER_POSITION]
    assert (record.status, record.outputs) == ("not measured", ())
    assert record.reason == "Each image was made by itself, so there is no other position in a batch."
    assert not calls
    assert OTHER_POSITION not in {progress.arm for progress in seen}


def test_refused_preset_has_the_reason_in_all_of_its_records(verified: Verified) -> None:
    refused = (REFUSED, f"{REFUSED}, other order", *(condition_arm(REFUSED, condition) for condition in CONDITIONS))
    verified.without("baseline", *refused)
    verified.rewrite_journal(lambda line: line.get("arm") != "baseline")
    seen: list[Progress] = []
    records = _arms(verified.resume(seen.append))
    for name in refused:
        assert (records[name].status, records[name].outputs, records[name].plan) == ("refused", (), ())
        assert "get another machine" in (records[name].reason or "")
    # Progress counts what will run alone: of the 40 items, 8 of these were still counted when baseline ran.
    assert [(progress.done, progress.total) for progress in seen if progress.arm == "baseline"] == [
        (28, 40),
        (29, 40),
        (30, 40),
        (32, 40),
    ]


@pytest.mark.parametrize(
    ("error", "status"), [(OutOfMemory("The memory ran out; free some."), "oom"), (Refused("Not here."), "refused")]
)
def test_arm_that_cannot_run_is_a_record_but_without_baseline_there_is_nothing(
    error: Refused, status: str, verified: Verified, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> Any:
        raise error

    monkeypatch.setattr("kontext_fast.verify.arm_pipeline.ArmPipeline.prepared", failing)
    verified.rewrite_journal(lambda line: line.get("arm") not in ("baseline", "re-run"))
    verified.without("re-run")
    record = _arms(verified.resume())["re-run"]
    assert (record.status, record.reason, record.outputs, record.edits_s) == (status, str(error), (), ())
    verified.without("baseline")
    with pytest.raises(type(error), match=str(error)):
        verified.resume()


def test_edit_that_cannot_be_timed_costs_the_time_alone(verified: Verified, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(error: BaseException) -> None:
        def failing(*_: Any) -> Any:
            raise error

        monkeypatch.setattr("kontext_fast.verify.image_generator.ImageGenerator.time_edits", failing)

    before = _arms(verified.result)["1 step"]
    verified.without("1 step")
    raising(RuntimeError("no kernel"))
    after = _arms(verified.resume())["1 step"]
    assert (after.status, after.outputs, after.edits_s) == ("ok", before.outputs, ())
    verified.without("1 step")
    raising(Cancelled("Stopped."))
    with pytest.raises(Cancelled, match="Stopped"):
        verified.resume()


def test_picture_controls_are_made_of_what_baseline_made(verified: Verified) -> None:
    before = _arms(verified.result)
    lost = before["baseline"].outputs[1]
    failed = lost.model_copy(update={"image": None, "failure": "It failed."})
    baseline = before["baseline"].model_copy(
        update={"outputs": (before["baseline"].outputs[0], failed, *before["baseline"].outputs[2:])}
    )
    pictures = ("blur", "JPEG quality 30", "unedited input")
    verified.with_records(
        [baseline, *(record for name, record in before.items() if name not in ("baseline", *pictures))]
    )
    after = _arms(verified.resume())
    for name in pictures:
        made = [output for output in before[name].outputs if (output.item, output.seed) != (lost.item, lost.seed)]
        assert list(after[name].outputs) == made
        assert len(made) == 3
        assert after[name].arm == before[name].arm
        assert after[name].preset == name
    store = ResultStore(verified.folder)
    blurred, jpeg, unedited = (after[name].outputs[0].image or "" for name in pictures)
    original = read_stored_image(store.image_path(baseline.outputs[0].image or ""))
    assert blurred == image_hash(original.filter(ImageFilter.GaussianBlur(BLUR_RADIUS)))
    assert unedited == image_hash(ITEMS[0].image or original)
    assert jpeg not in (blurred, unedited)


def test_only_arms_without_scores_are_scored(verified: Verified) -> None:
    before = _arms(verified.result)
    unscored = ("baseline", "rounded", "re-run")
    marked = {
        name: record.model_copy(update={"scores": () if name in unscored else record.scores[:1]})
        for name, record in before.items()
    }
    verified.with_records(list(marked.values()))
    seen: list[Progress] = []
    result = verified.resume(seen.append)
    after = _arms(result)
    assert {name: after[name].scores for name in unscored} == {name: before[name].scores for name in unscored}
    others = set(before) - set(unscored)
    assert {name: after[name].scores for name in others} == {name: before[name].scores[:1] for name in others}
    assert [(progress.arm, progress.done, progress.total) for progress in seen] == [
        ("scoring", 0, 20),
        ("scoring", 8, 20),
        ("scoring", 16, 20),
        ("scoring", 20, 20),
    ]
    verification = result.verification
    assert verification is not None
    assert {metric.name for metric in verification.metrics if metric.not_measured} >= {"clip_text", "judge_done"}


def test_only_missing_references_are_computed_and_all_distances_are_there_once(verified: Verified) -> None:
    before = _arms(verified.result)
    kept, *lost = (item.id for item in ITEMS[:3])
    folder = verified.folder / FOLDER / "converged"
    stamp = (folder / f"{kept}-7.npz").stat().st_mtime_ns
    for item in lost:
        (folder / f"{item}-7.npz").unlink()
    seen: list[Progress] = []
    after = _arms(verified.resume(seen.append))
    assert (folder / f"{kept}-7.npz").stat().st_mtime_ns == stamp
    # Of each item, which have calls of their own: the two steps of baseline, and paths of four steps and of two, each
    # after one look at the levels.
    steps = [progress for progress in seen if progress.arm == "converged reference"]
    assert [(progress.done, progress.total) for progress in steps] == [
        (count + before, 20) for before in (0, 10) for count in (2, 3, 7, 8, 10)
    ]
    metrics = {DISTANCE, DISTANCE_IN_FLOAT32, REFERENCE_ERROR}
    for name, record in after.items():
        assert sorted(record.scores, key=repr) == sorted(before[name].scores, key=repr)
        found = {(score.item, score.seed, score.metric) for score in record.scores if score.metric in metrics}
        of_arm = {"baseline": metrics, "rounded": {DISTANCE}}.get(name, set())
        assert found == {(item, 7, metric) for item in (kept, *lost) for metric in of_arm}


def test_device_is_where_the_pipeline_is_or_the_one_that_was_asked_for(verified: Verified, tmp_path: Path) -> None:
    before = _arms(verified.result)
    assert _arms(verified.resume(device="cuda:99")) == before
    with pytest.raises((InvalidInput, Refused), match="GPU"):
        verify(Request(presets=("faithful",), device="cuda:99"), tmp_path / "other")


def test_interruption_says_how_to_go_on_and_leaves_the_pipeline_as_it_came(verified: Verified) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done == progress.total:
            assert current(verified.request.pipe) is not None
            raise KeyboardInterrupt

    verified.rewrite_journal(lambda line: (line.get("arm"), line.get("item")) != ("rounded", ITEMS[0].id))
    verified.without("rounded")
    with pytest.raises(Cancelled) as caught:
        verified.resume(interrupt)
    assert str(caught.value).startswith("The verification was interrupted; ")
    assert str(caught.value).endswith(f" --resume --out {verified.folder}.")
    assert current(verified.request.pipe) is None
