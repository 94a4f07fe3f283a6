"""How arms become records, and which output of which arm each output is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from kontext_fast.metrics.base import Case, Control, Metric, Role, Setting
from kontext_fast.metrics.psnr import Psnr
from kontext_fast.metrics.scorer import Scorer
from kontext_fast.optimizations.presets import resolve
from kontext_fast.pipeline.device import Machine
from kontext_fast.records.schema import (
    Arm,
    MetricFacts,
    Output,
    Record,
    ResultFile,
    Score,
)
from kontext_fast.records.store import ResultStore
from kontext_fast.verify.journal import Journal
from kontext_fast.verify.pictures import REPEAT
from kontext_fast.verify.recorder import ArmRecorder, score_arms, stored_outputs
from tests.metrics.cases import FreeItem
from tests.records.builder import TINY, record, result, stored_verification

BASELINE = Arm(name="baseline", role="baseline")
FAST = Arm(name="fast", role="preset")


class Brightness(Metric):
    name: ClassVar[str] = "brightness"
    title: ClassVar[str] = "brightness"
    role: ClassVar[Role] = Role.QUALITY
    must_detect: ClassVar[frozenset[Control]] = frozenset()

    def scores(self, cases: Sequence[Case]) -> list[float | bool | None]:
        return [float(np.asarray(case.output).mean()) for case in cases]


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "out")


def whole(records: list[Record] | None = None) -> ResultFile:
    verification = stored_verification(dataset="shapes", steps=4, control_items=("a",))
    return result(records or []).model_copy(update={"verification": verification})


def recorder_of(store: ResultStore, records: list[Record] | None = None) -> ArmRecorder:
    return ArmRecorder(store, whole(records), TINY, {"device": "imaginary"})


def output(item: str, seed: int, image: str | None = "a" * 64, failure: str | None = None) -> Output:
    return Output(item=item, seed=seed, image=image, failure=failure)


def test_arms_are_on_disk_as_soon_as_they_end(store: ResultStore) -> None:
    recorder = recorder_of(store)
    assert store.load().records == ()
    recorder.add(BASELINE, "baseline", [output("a", 0)])
    plan = resolve("faithful", Machine.detect(torch.device("cpu")))
    recorder.add(FAST, "fast", [output("a", 0)], plan=plan, edits_s=(1.0, 2.0))
    first, second = store.load().records
    assert (first.arm, first.preset, first.order, first.status, first.reason) == (BASELINE, "baseline", 0, "ok", None)
    assert (second.arm, second.preset, second.order, second.edits_s) == (FAST, "fast", 1, (1.0, 2.0))
    assert first.checkpoint == TINY
    assert first.environment == {"device": "imaginary"}
    assert (first.plan, first.labels, first.outputs) == ((), (), (output("a", 0),))
    assert (second.plan, second.labels) == (plan.applied, plan.labels)
    assert second.plan
    assert second.labels, "kernels are emulated on a CPU"
    assert (first.round, second.round) == (0, 0)
    assert first.run_id != second.run_id
    assert first.created_at.endswith("+00:00")
    assert len(first.created_at) == len("2001-02-03T04:05:06+00:00")


@pytest.mark.parametrize(
    ("outputs", "status", "reason"),
    [
        ([output("a", 0, None, "first"), output("b", 0, None, "second")], "crash", "first"),
        ([output("a", 0, None, None), output("b", 0, None, "second")], "crash", "second"),
        ([], "crash", "There was nothing to make."),
        ([output("a", 0, None, "first"), output("b", 0)], "ok", None),
    ],
)
def test_arm_without_an_image_has_crashed(
    outputs: list[Output], status: str, reason: str | None, store: ResultStore
) -> None:
    recorder_of(store).add(BASELINE, "baseline", outputs)
    (stored,) = store.load().records
    assert (stored.status, stored.reason) == (status, reason)
    assert stored.outputs == tuple(outputs)


def test_refused_arm_keeps_its_reason_without_paths(store: ResultStore) -> None:
    recorder_of(store).add(FAST, "fast", [], status="refused", reason=f"No room in {Path.home()}/secret; free some.")
    (stored,) = store.load().records
    assert stored.status == "refused"
    assert str(Path.home()) not in str(stored.reason)
    assert str(stored.reason).startswith("No room in ")


def test_scores_and_metrics_join_what_is_there(store: ResultStore) -> None:
    before = record("baseline", 0, arm=BASELINE, outputs=(output("a", 0),))
    recorder = recorder_of(store, [before])
    assert recorder.records == {"baseline": before}
    recorder.add(FAST, "fast", [output("a", 0)])
    scores = [Score(item="a", seed=0, image="a" * 64, metric="psnr", value=9.0)]
    recorder.add_scores("fast", scores)
    recorder.set_metrics((MetricFacts(name="psnr"),))
    stored = store.load()
    assert [of_arm.scores for of_arm in stored.records] == [(), tuple(scores)]
    assert stored.verification == whole().verification.model_copy(update={"metrics": (MetricFacts(name="psnr"),)})
    assert [of_arm.order for of_arm in stored.records] == [0, 1]


def compared(arm: str, records: dict[str, Record], store: ResultStore) -> dict[tuple[str, int], Any]:
    """For each output of an arm its picture, the picture it is compared with, and whose latents."""
    items = {name: FreeItem(id=name, image=Image.new("RGB", (8, 8))) for name in "ab"}
    journal = Journal(store.folder)
    latents = {
        journal.latents_file(name, of_arm.item, of_arm.seed): (name, of_arm.seed)
        for name, stored in records.items()
        for of_arm in stored.outputs
    }
    pictures = {
        store.image_path(of_arm.image): of_arm.image
        for stored in records.values()
        for of_arm in stored.outputs
        if of_arm.image
    }
    found = {}
    for of_arm in stored_outputs(arm, records, items, store, journal):
        assert of_arm.item is items[of_arm.item.id]
        assert pictures[of_arm.file] == of_arm.image
        assert of_arm.latents_file is not None
        assert latents[of_arm.latents_file] == (arm, of_arm.seed)
        reference, its_latents = of_arm.reference_file, of_arm.reference_latents_file
        found[of_arm.item.id, of_arm.seed] = (
            of_arm.image,
            reference and pictures[reference],
            its_latents and latents[its_latents],
        )
    return found


def test_every_arm_has_its_own_reference(store: ResultStore) -> None:
    def of_arm(arm: Arm, first: str, *missing: tuple[str, int]) -> Record:
        """Pictures named by a letter of the arm, the item and the seed."""
        outputs = [
            output(item, seed, None if (item, seed) in missing else f"{first}{item}{seed}" + "0" * 61)
            for seed in (2, 1)
            for item in "ab"
        ]
        return record(arm.name, 0, arm=arm, outputs=tuple(outputs))

    def names(found: dict[tuple[str, int], Any]) -> dict[str, tuple[Any, ...]]:
        return {of[0][:3]: (of[1] and of[1][:3], of[2]) for of in found.values()}

    order = Arm(name="fast, other order", role="order", preset="fast")
    alone, fast_alone = (
        Arm(name=f"{name}, one by one", role="condition", preset=name, condition="one by one")
        for name in ("baseline", "fast")
    )
    arms = {
        "baseline": of_arm(BASELINE, "1", ("b", 1)),
        "fast": of_arm(FAST, "2", ("a", 2)),
        order.name: of_arm(order, "3"),
        alone.name: of_arm(alone, "4"),
        fast_alone.name: of_arm(fast_alone, "5"),
    }
    # With its own first seed; b has one seed only.
    assert names(compared("baseline", arms, store)) == {
        "1a2": ("1a1", ("baseline", 1)),
        "1a1": (None, None),
        "1b2": (None, None),
    }
    # With baseline's, where that made one.
    assert names(compared("fast", arms, store)) == {
        "2a1": ("1a1", ("baseline", 1)),
        "2b2": ("1b2", ("baseline", 2)),
        "2b1": (None, None),
    }
    # With those of the preset in its own order.
    assert names(compared(order.name, arms, store)) == {
        "3a2": (None, None),
        "3a1": ("2a1", ("fast", 1)),
        "3b2": ("2b2", ("fast", 2)),
        "3b1": ("2b1", ("fast", 1)),
    }
    assert names(compared(fast_alone.name, arms, store))["5b1"] == ("4b1", (alone.name, 1))
    assert names(compared(alone.name, arms, store))["4b2"] == ("4b1", (alone.name, 1))


def test_baseline_is_scored_between_its_seeds(store: ResultStore) -> None:
    items = {name: FreeItem(id=name, image=Image.new("RGB", (32, 32), "gray")) for name in "ab"}
    journal = Journal(store.folder)

    def drawn(arm: Arm, color: int) -> Record:
        outputs = [
            output(item, seed, store.put_image(Image.new("RGB", (32, 32), (color + 9 * seed, 90, 90))))
            for item in "ab"
            for seed in (0, 1)
        ]
        return record(arm.name, 0, arm=arm, outputs=tuple(outputs))

    records = {"baseline": drawn(BASELINE, 50), "fast": drawn(FAST, 60)}
    outputs = {name: stored_outputs(name, records, items, store, journal) for name in records}
    done: list[int] = []
    scorer = Scorer(Setting(), list(items.values()), [Psnr, Brightness])
    scores = dict(score_arms(scorer, outputs, done.append))
    assert {score.metric for score in scores["baseline"]} == {"psnr between seeds", "brightness"}
    assert [(score.item, score.seed) for score in scores["baseline"] if "seeds" in score.metric] == [("a", 1), ("b", 1)]
    assert {"psnr", "brightness", REPEAT, "change of luminance"} <= {score.metric for score in scores["fast"]}
    assert sum(done) == 8
