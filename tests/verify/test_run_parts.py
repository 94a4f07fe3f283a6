"""Parts of a verification by themselves: its progress, its plans, its pipeline, and what it scores with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kontext_fast.metrics
from kontext_fast.datasets.base import Dataset
from kontext_fast.errors import InvalidInput
from kontext_fast.metrics import base as metrics
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.presets import Plan, Preset
from kontext_fast.optimizations.techniques.engine import Engine
from kontext_fast.pipeline.device import Machine
from kontext_fast.records.schema import EMULATED, Arm, Output, Score
from kontext_fast.records.store import ResultStore
from kontext_fast.verify.converged import DISTANCE, DISTANCE_IN_FLOAT32, REFERENCE_ERROR
from kontext_fast.verify.journal import FOLDER, Journal
from kontext_fast.verify.request import Request
from kontext_fast.verify.run import Progress, _plan_or_refusal, _ProgressTracker, _Run, _sample_of, _source
from tests.conftest import AddPlugin
from tests.metrics.cases import FreeItem
from tests.pipelines import picture, small_pipeline
from tests.verify import faulty_optimizations as faulty

ITEMS = tuple(FreeItem(id=f"{index:016x}", image=picture(index)) for index in range(4))
SEED = 7


def _begun(folder: Path, **options: Any) -> _Run:
    """A verification that has made nothing yet, of a pipeline and four items."""
    request = Request(
        **{
            "presets": ("faithful",),
            "pipe": small_pipeline(),
            "dataset": Dataset("mine", ITEMS, ()),
            "seed": SEED,
            **options,
        }
    )
    return _Run(request, ResultStore(folder), resume=False, command="test", on_progress=lambda _: None)


def test_progress_estimates_the_rest_from_what_was_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six of ten items are left; items of before a stop took no time here, and items that are skipped take none."""
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    seen: list[Progress] = []
    tracker = _ProgressTracker(10, 6, seen.append)
    tracker.show("first")
    clock[0] += 3.0
    tracker.step("first", 2)
    tracker.skip(1)
    clock[0] += 3.0
    tracker.step("second", 1)
    assert seen == [
        Progress("first", 4, 10, None),
        Progress("first", 6, 10, 3.0 / 2 * 4),
        Progress("second", 7, 9, 6.0 / 3 * 2),
    ]


@pytest.mark.parametrize("own", [True, False])
def test_preset_is_resolved_for_the_pipeline_or_checkpoint_or_refused(own: bool) -> None:
    pipe, device = small_pipeline() if own else None, torch.device("cpu")
    refused = faulty.preset(faulty.NeedsAnotherMachine())
    request = Request(presets=("faithful", refused), pipe=pipe)
    name, plan = _plan_or_refusal("faithful", device, request)
    assert isinstance(plan, Plan)
    assert (name, plan.preset) == ("faithful", "faithful")
    name, reason = _plan_or_refusal(refused, device, request)
    assert name == "needs another machine"
    assert isinstance(reason, str)
    assert "get another machine" in reason
    with pytest.raises(InvalidInput, match="no preset 'fastest'"):
        _plan_or_refusal("fastest", device, request)


@pytest.mark.parametrize(
    ("origin", "name"),
    [
        ("someone/weights", "someone/weights"),
        ("/home/somebody/models/mine", "mine"),
        ("models/fine/mine", "mine"),
        ("", "pipeline"),
        (None, "pipeline"),
    ],
)
def test_own_pipeline_is_named_without_a_path(origin: str | None, name: str) -> None:
    pipe = small_pipeline()
    pipe.register_to_config(_name_or_path=origin)
    with _source(Request(presets=("faithful",), pipe=pipe), torch.device("cpu")) as loaded:
        assert loaded.pipe is pipe
        facts = loaded.facts
    assert (facts.name, facts.kind, facts.dtype) == (name, "pipeline", "float32")
    assert facts.weights_sha256 == _sample_of(pipe)


def test_folder_that_looks_like_a_hub_id_is_named_as_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models/mine").mkdir(parents=True)
    pipe = small_pipeline()
    pipe.register_to_config(_name_or_path="models/mine")
    with _source(Request(presets=("faithful",), pipe=pipe), torch.device("cpu")) as loaded:
        assert loaded.facts.name == "mine"


def test_accelerated_pipeline_is_no_baseline() -> None:
    pipe = small_pipeline()
    request = Request(presets=("faithful",), pipe=pipe)
    with accelerate(pipe, "faithful", quiet=True), pytest.raises(InvalidInput) as caught:
        _source(request, torch.device("cpu"))
    assert str(caught.value) == ("This pipeline is accelerated; call revert() on that first: baseline runs without it.")


@pytest.mark.parametrize("missing", [{"checkpoint": "nowhere/at/all"}, {"lora": (("nowhere.safetensors", 1.0),)}])
def test_checkpoint_and_loras_that_are_not_there_are_named(missing: dict[str, Any]) -> None:
    request = Request(presets=("faithful",), dataset=Path("unread"), **missing)
    with pytest.raises(InvalidInput, match="nowhere"):
        _source(request, torch.device("cpu")).__enter__()


def test_weights_of_a_pipeline_are_told_apart_wherever_they_change() -> None:
    """As a resumed verification needs it, since a LoRA may be merged into any of them."""
    pipe = small_pipeline()
    before = _sample_of(pipe)
    assert len(before) == 64
    assert _sample_of(small_pipeline()) == before
    for weight in list(pipe.transformer.parameters())[::4]:
        kept = weight.data.clone()
        weight.data.mul_(1.01).add_(0.01)
        assert _sample_of(pipe) != before
        weight.data.copy_(kept)
    assert _sample_of(pipe) == before
    half = small_pipeline()
    half.transformer.to(torch.bfloat16)
    assert _sample_of(half) != before


class _NamesTheDevice(faulty.NeedsAnotherMachine):
    name = "names the device"

    def refusal(self, machine: Machine) -> str | None:
        return f"not on {machine.device}"


def test_preset_and_checkpoint_are_those_of_the_device_that_was_asked_for() -> None:
    request, device = Request(presets=("faithful",)), torch.device("mps")
    _, reason = _plan_or_refusal(faulty.preset(_NamesTheDevice()), device, request)
    assert reason == "The preset names the device is refused on this machine: not on mps."
    with pytest.raises(InvalidInput, match=r"^The device mps is not supported"):
        _source(request, device).__enter__()


def test_emulated_kernels_are_not_timed(tmp_path: Path) -> None:
    run = _begun(tmp_path, presets=(Preset("fp8", "", (Engine(precision="fp8"),)),), frontier=True)
    (spec,) = (spec for spec in run._specs() if spec.arm.name == "fp8")
    assert spec.timed
    plan = run._plan(spec)
    assert plan is not None
    assert EMULATED in plan.labels
    assert run._time_edits(spec) == ()


def test_only_picture_controls_that_are_not_recorded_are_made(tmp_path: Path) -> None:
    run = _begun(tmp_path)
    store, recorder = ResultStore(tmp_path), run._recorder
    outputs = [Output(item=item.id, seed=SEED, image=store.put_image(item.image or picture())) for item in ITEMS[:2]]
    recorder.add(Arm(name="baseline", role="baseline"), "baseline", outputs)
    recorder.add(Arm(name="blur", role="control"), "blur", outputs)
    blurred = recorder.records["blur"]
    run.degrade_outputs()
    assert recorder.records["blur"] is blurred
    assert [len(recorder.records[name].outputs) for name in ("JPEG quality 30", "unedited input")] == [2, 2]


def test_items_without_an_image_or_latents_have_no_distance_and_others_have(tmp_path: Path) -> None:
    run = _begun(tmp_path, converged_items=4)
    recorder, journal, vae = run._recorder, Journal(tmp_path), small_pipeline().vae.config
    no_latents, no_image, *whole = (item.id for item in ITEMS)
    images = {item: None if item == no_image else "0" * 64 for item in (no_latents, no_image, *whole)}
    outputs = [
        Output(item=item, seed=SEED, image=image, failure=None if image else "It failed.")
        for item, image in images.items()
    ]
    other = Score(item=whole[0], seed=SEED, image="0" * 64, metric="psnr", value=30.0)
    for arm, role in (("baseline", "baseline"), ("faithful", "preset"), ("re-run", "floor")):
        recorder.add(Arm(name=arm, role=role), arm, outputs)
        recorder.add_scores(arm, [other])
        for item in (no_image, *whole):
            file = journal.latents_file(arm, item, SEED)
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, np.full((2, 2, 2), vae["shift_factor"] + 1.5 / vae["scaling_factor"], np.float32))
    references = tmp_path / FOLDER / "converged"
    references.mkdir(parents=True)
    for item in images:
        np.savez(references / f"{item}-{SEED}.npz", target=np.ones((1, 8), np.float32), error=0.01, exact=0.25)
    run.compare_with_references()
    expected = {DISTANCE: 0.5, DISTANCE_IN_FLOAT32: 0.25, REFERENCE_ERROR: 0.01}
    for arm, kept in (("baseline", (*expected,)), ("faithful", (DISTANCE,)), ("re-run", ())):
        first, *scores = recorder.records[arm].scores
        assert first == other
        assert [(score.item, score.seed, score.image, score.metric) for score in scores] == [
            (item, SEED, "0" * 64, metric) for item in whole for metric in kept
        ]
        assert [score.value for score in scores] == pytest.approx([expected[score.metric] for score in scores])


_TOLD = """
from kontext_fast.metrics.base import Metric, NotMeasured, Role

class Told(Metric):
    name, title, role, must_detect = "told", "told", Role.FIDELITY, frozenset()

    def prepare(self):
        raise NotMeasured(str(self.setting))

    def scores(self, cases):
        return []
"""


@pytest.mark.parametrize(("kind", "random_weights", "has_judge"), [("tiny", False, True), ("random", True, False)])
def test_metrics_are_told_of_the_checkpoint_the_weights_and_the_device(
    kind: str, random_weights: bool, has_judge: bool, add_plugin: AddPlugin, tmp_path: Path
) -> None:
    add_plugin(kontext_fast.metrics, "told", _TOLD, metrics.discover)
    run = _begun(tmp_path / "out", weights=tmp_path)
    run._pipeline.facts = run._pipeline.facts.model_copy(update={"kind": kind})
    run._device = torch.device("meta")
    run.score_outputs()
    verification = ResultStore(tmp_path / "out").load().verification
    assert verification is not None
    (facts,) = (metric for metric in verification.metrics if metric.name == "told")
    setting = metrics.Setting(random_weights=random_weights, has_judge=has_judge, weights=tmp_path, device="meta")
    assert facts.not_measured == f"Not measured: {setting}."
