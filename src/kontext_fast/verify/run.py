"""A verification from beginning to end: generate the outputs of every arm, degrade some, and score all of them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kontext_fast.bench.environment import environment_facts
from kontext_fast.datasets.base import Dataset, Item
from kontext_fast.errors import Cancelled, InvalidInput, OutOfMemory, Refused
from kontext_fast.metrics.base import Control, Setting
from kontext_fast.metrics.scorer import Scorer
from kontext_fast.optimizations.acceleration import current, resolve_on
from kontext_fast.optimizations.presets import Plan, Preset, resolve_for
from kontext_fast.pipeline.device import Machine, choose_device
from kontext_fast.pipeline.hub import is_hub_id
from kontext_fast.pipeline.load import LoadedCheckpoint, loaded_checkpoint
from kontext_fast.pipeline.lora import load_with_loras
from kontext_fast.records.lock import locked_folder
from kontext_fast.records.names import machine_name
from kontext_fast.records.privacy import redact
from kontext_fast.records.schema import (
    BASELINE,
    EMULATED,
    Arm,
    Output,
    ResultFile,
    Score,
    Status,
    StoredItem,
    Verification,
)
from kontext_fast.records.store import ResultStore, read_stored_image
from kontext_fast.verify.arm_pipeline import ArmPipeline
from kontext_fast.verify.arms import ArmSpec, arm_specs
from kontext_fast.verify.controls import OTHER_POSITION, control_count, degrade
from kontext_fast.verify.converged import (
    DISTANCE,
    DISTANCE_IN_FLOAT32,
    REFERENCE_ERROR,
)
from kontext_fast.verify.converged_reference import ReferenceStore, reference_evaluations
from kontext_fast.verify.image_generator import ImageGenerator
from kontext_fast.verify.journal import FOLDER, Journal
from kontext_fast.verify.recorder import ArmRecorder, score_arms, stored_outputs
from kontext_fast.verify.request import Request, dataset_of
from kontext_fast.version import __version__


@dataclass(frozen=True)
class Progress:
    """How far a verification is, and how long the rest takes."""

    arm: str
    done: int
    """Items generated, or outputs scored."""
    total: int
    left_s: float | None
    """Estimated from what this process did so far; None before the first call ended."""


OnProgress = Callable[[Progress], None]


def verify(
    request: Request, out: Path, *, resume: bool = False, command: str = "verify", on_progress: OnProgress | None = None
) -> ResultFile:
    """Verify presets and store records, images and scores in the folder `out`; the verdicts are computed from them.

    With `resume`, what an earlier call in `out` made is kept. A preset that this machine refuses is a record, too.
    Raises InvalidInput, Refused or OutOfMemory where nothing can be verified, also while another process writes into
    `out`, and Cancelled on Ctrl-C.
    """
    store = ResultStore(out)
    with locked_folder(out, command):
        if not resume and store.records_file.exists():
            raise InvalidInput("The folder already has records; choose another one, or add --resume.")
        try:
            run = _Run(request, store, resume=resume, command=command, on_progress=on_progress or (lambda _: None))
            with run:
                run.generate_outputs()
                run.find_converged_references()
                run.degrade_outputs()
                run.score_outputs()
                run.compare_with_references()
        except KeyboardInterrupt:
            raise Cancelled(
                f"The verification was interrupted; go on with the same command and --resume --out {out}."
            ) from None
        return store.load()


class _Run:
    """One verification while it runs; what has been done before is not done again."""

    def __init__(
        self, request: Request, store: ResultStore, *, resume: bool, command: str, on_progress: OnProgress
    ) -> None:
        self._request = request
        self._store = store
        self._on_progress = on_progress
        pipe = request.pipe
        self._device = choose_device(request.device) if pipe is None else pipe._execution_device
        dataset = dataset_of(request)
        # Ids are hashes, so that the first ones are an arbitrary choice which looks at no result.
        self._items = list(dataset.items)[: request.items]
        self._control_items = self._items[: control_count(len(self._items), request.control_items)]
        self._plans = dict(_plan_or_refusal(preset, self._device, request) for preset in request.presets)
        self._pipeline = ArmPipeline(_source(request, self._device), self._device)
        self._generator = ImageGenerator(
            self._pipeline, seeds=request.all_seeds, guidance=request.guidance, images_per_call=request.batch
        )
        self._generator.fit_memory(self._items[0])
        environment = environment_facts(str(self._device))
        self._journal = Journal(store.folder)
        self._vae = self._pipeline.pipe.vae.config
        self._references = ReferenceStore(store.folder / FOLDER)
        setup = self._setup(dataset, environment)
        if resume:
            self._journal.resume(setup, store.image_path)
        else:
            self._journal.begin(setup)
        result = ResultFile(
            kontext_fast_version=__version__,
            command=redact(command),
            suite="verify",
            suite_sha256=request.margins.sha256,
            seed=request.seed,
            items=tuple(map(self._stored, self._items)),
            records=store.load().records if store.records_file.exists() else (),
            verification=self._verification(dataset),
        )
        self._recorder = ArmRecorder(store, result, self._pipeline.facts, environment)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._pipeline.release()

    def _setup(self, dataset: Dataset, environment: dict[str, Any]) -> dict[str, Any]:
        """Everything that decides an output; a resumed verification must agree in it."""
        request, facts = self._request, self._pipeline.facts
        return {
            "checkpoint": facts.name,
            "weights": facts.weights_sha256,
            "precision": facts.dtype,
            "machine": machine_name(environment),
            "version": __version__,
            "presets": {
                name: plan if isinstance(plan, str) else plan.content_hash for name, plan in self._plans.items()
            },
            "dataset": dataset.name,
            "items": hashlib.sha256(" ".join(item.id for item in self._items).encode()).hexdigest(),
            "control items": len(self._control_items),
            "seeds": request.all_seeds,
            "steps": request.steps,
            "guidance": request.guidance,
            "batch": self._generator.images_per_call,
            "frontier": request.frontier,
            "margins": request.margins.sha256,
        }

    def _verification(self, dataset: Dataset) -> Verification:
        request = self._request
        return Verification(
            dataset=dataset.name,
            steps=request.steps,
            guidance=request.guidance,
            seeds=request.all_seeds,
            batch=self._generator.images_per_call,
            control_items=tuple(item.id for item in self._control_items),
            margins=request.margins.model_dump(),
            margins_sha256=request.margins.sha256,
            rejected=tuple(map(redact, dataset.rejected)),
        )

    def _stored(self, item: Item) -> StoredItem:
        target = item.target
        return StoredItem(
            id=item.id,
            instruction=item.instruction,
            image=self._store.put_image(item.image),
            target=None if target is None else self._store.put_image(target),
            kind=item.kind,
            open=item.open,
        )

    def generate_outputs(self) -> None:
        """Run every arm that has items left to do."""
        request, specs = self._request, self._specs()
        left = {spec.arm.name: self._items_left(spec) for spec in specs}
        tracker = _ProgressTracker(
            sum(len(spec.items) for spec in specs), sum(map(len, left.values())), self._on_progress
        )
        for spec in specs:
            name = spec.arm.name
            if name in self._recorder.records and not left[name]:
                continue
            status, reason = self._run_arm(spec, left[name], tracker)
            self._recorder.add(
                spec.arm,
                spec.preset_name,
                [output for of_item in self._journal.done(name).values() for output in of_item],
                status=status,
                reason=reason,
                plan=self._plan(spec),
                edits_s=self._time_edits(spec) if request.frontier and spec.timed and status == "ok" else (),
            )

    def _specs(self) -> list[ArmSpec]:
        request = self._request
        return list(
            arm_specs(
                request.presets,
                self._items,
                self._control_items,
                steps=request.steps,
                seeds=request.seeds,
                images_per_call=self._generator.images_per_call,
                frontier=request.frontier,
            )
        )

    def _items_left(self, spec: ArmSpec) -> frozenset[int]:
        """Positions of the items that have no output yet."""
        done = self._journal.done(spec.arm.name)
        if spec.arm.name in self._recorder.records and not done:
            return frozenset()
        return frozenset(index for index, item in enumerate(spec.items) if item.id not in done)

    def _plan(self, spec: ArmSpec) -> Plan | None:
        plan = self._plans.get(spec.preset_name)
        return plan if isinstance(plan, Plan) else None

    def _run_arm(self, spec: ArmSpec, items: frozenset[int], tracker: _ProgressTracker) -> tuple[Status, str | None]:
        """The status of the arm, and why it has no outputs."""
        name = spec.arm.name
        if name == OTHER_POSITION and self._generator.images_per_call == 1:
            tracker.skip(len(items))
            return "not measured", "Each image was made by itself, so there is no other position in a batch."
        if isinstance(refusal := self._plans.get(spec.preset_name), str):
            tracker.skip(len(items))
            return "refused", refusal
        tracker.show(name)
        # A batch of which items are missing runs whole again: in a smaller one they would round otherwise.
        batches = [batch for batch in self._generator.batches(spec) if not items.isdisjoint(batch)]
        try:
            for results in self._generator.generate(spec, batches, self._store.put_image):
                new = [result for result in results if result.item.id not in self._journal.done(name)]
                self._journal.add(name, [(result.item.id, result.outputs, result.latents) for result in new])
                tracker.step(name, len(new))
        except (Refused, OutOfMemory) as error:
            if spec.arm.role == "baseline":
                raise
            return ("oom" if isinstance(error, OutOfMemory) else "refused"), str(error)
        return "ok", None

    def _time_edits(self, spec: ArmSpec) -> tuple[float, ...]:
        """Seconds of single edits; none where the kernels are emulated, and where an edit fails."""
        plan = self._plan(spec)
        if plan is not None and EMULATED in plan.labels:
            return ()
        try:
            return self._generator.time_edits(spec)
        except Cancelled:
            raise
        except Exception:  # noqa: BLE001 - the outputs of the arm say why it fails
            return ()

    def find_converged_references(self) -> None:
        """Where the paths of the first items lead, on the pipeline as diffusers runs it with latents in float32."""
        from kontext_fast.verify.paths import PathRunner

        request, seed = self._request, self._request.all_seeds[0]
        # By their ids, since an item is an interface without equality.
        compared = {item.id for item in self._items[: request.converged_items]}
        left = {item for item in compared if (item, seed) not in self._references}
        if not left:
            return
        baseline = next(spec for spec in self._specs() if spec.arm.role == "baseline")
        batches = [[self._items[index] for index in batch] for batch in self._generator.batches(baseline)]
        batches = [some for batch in batches if (some := [item for item in batch if item.id in left])]
        # Each of a batch's two paths looks up its noise levels by one evaluation more.
        total = (reference_evaluations() + request.steps) * len(left) + 2 * len(batches)
        tracker = _ProgressTracker(total, total, self._on_progress)
        with self._pipeline.prepared(baseline) as pipe:
            runner = PathRunner(
                pipe,
                steps=request.steps,
                guidance=request.guidance,
                size=None,
                on_progress=lambda count: tracker.step("converged reference", count),
            )
            try:
                for items in batches:
                    self._references.add(runner, items, seed)
            finally:
                runner.close()

    def compare_with_references(self) -> None:
        """Add the distances of baseline and the presets to the references to their scores."""
        request, seed = self._request, self._request.all_seeds[0]
        if not request.converged_items:
            return
        names = (DISTANCE, DISTANCE_IN_FLOAT32, REFERENCE_ERROR)
        for name, record in self._recorder.records.items():
            if record.arm is None or record.arm.role not in ("baseline", "preset"):
                continue
            scores = [score for score in record.scores if score.metric not in names]
            images = {output.item: output.image for output in record.outputs if output.seed == seed and output.image}
            for item in self._items[: request.converged_items]:
                latents = self._journal.latents_file(name, item.id, seed)
                if item.id not in images or not latents.is_file():
                    continue
                distances = self._references.distances((item.id, seed), latents, self._vae)
                kept = names if record.arm.role == "baseline" else (DISTANCE,)
                scores += [
                    Score(item=item.id, seed=seed, image=images[item.id], metric=metric, value=distances[metric])
                    for metric in kept
                ]
            self._recorder.add_scores(name, scores)

    def degrade_outputs(self) -> None:
        """The controls that need no pipeline: baseline's outputs made worse, and the input as the output."""
        inputs = {item.id: item for item in self._control_items}
        baseline = self._recorder.records[BASELINE].outputs
        for control in (Control.BLUR, Control.JPEG, Control.UNEDITED):
            if control.value in self._recorder.records:
                continue
            outputs = []
            for output in baseline:
                if output.item not in inputs or not output.image:
                    continue
                image = read_stored_image(self._store.image_path(output.image))
                worse = degrade(image, control, inputs[output.item].image)
                outputs.append(Output(item=output.item, seed=output.seed, image=self._store.put_image(worse)))
            self._recorder.add(Arm(name=control.value, role="control"), control.value, outputs)

    def score_outputs(self) -> None:
        """Score every arm that has no scores yet."""
        self._pipeline.release()
        facts = self._pipeline.facts
        setting = Setting(
            random_weights=facts.random_weights,
            has_judge=facts.has_judge,
            weights=self._request.weights,
            device=str(self._device),
        )
        scorer = Scorer(setting, self._items)
        self._recorder.set_metrics(scorer.facts)
        records = self._recorder.records
        items = {item.id: item for item in self._items}
        outputs = {
            name: stored_outputs(name, records, items, self._store, self._journal)
            for name, record in records.items()
            if record.outputs and not record.scores
        }
        total = sum(map(len, outputs.values()))
        tracker = _ProgressTracker(total, total, self._on_progress)
        tracker.show("scoring")
        for name, scores in score_arms(scorer, outputs, lambda count: tracker.step("scoring", count)):
            self._recorder.add_scores(name, scores)


class _ProgressTracker:
    """Counts what is done and estimates how long the rest takes."""

    def __init__(self, total: int, left: int, on_progress: OnProgress) -> None:
        self._total = total
        self._done = total - left
        self._done_before = self._done
        self._started = time.monotonic()
        self._on_progress = on_progress

    def step(self, arm: str, count: int) -> None:
        self._done += count
        self.show(arm)

    def skip(self, count: int) -> None:
        """Items that will not be generated."""
        self._total -= count

    def show(self, arm: str) -> None:
        left_s = None
        if done_here := self._done - self._done_before:
            left_s = (time.monotonic() - self._started) / done_here * (self._total - self._done)
        self._on_progress(Progress(arm, self._done, self._total, left_s))


def _plan_or_refusal(preset: str | Preset, device: Any, request: Request) -> tuple[str, Plan | str]:
    """The preset's name with its plan, or why this machine refuses it. Raises InvalidInput for an impossible one."""
    name = preset if isinstance(preset, str) else preset.name
    try:
        if request.pipe is not None:
            return name, resolve_on(request.pipe, preset)
        return name, resolve_for(request.checkpoint, preset, Machine.detect(device))
    except Refused as error:
        return name, str(error)


def _source(request: Request, device: Any) -> AbstractContextManager[LoadedCheckpoint]:
    """The pipeline of a verification. Raises InvalidInput for one that is accelerated already."""
    pipe = request.pipe
    if pipe is None:
        return load_with_loras(request.checkpoint, request.lora, device=device)
    if current(pipe) is not None:
        raise InvalidInput("This pipeline is accelerated; call revert() on that first: baseline runs without it.")
    name = str(pipe.config.get("_name_or_path") or "")
    known = name if is_hub_id(name) and not Path(name).exists() else Path(name).name
    dtype = pipe.transformer.dtype
    return nullcontext(
        loaded_checkpoint(pipe, name=known or "pipeline", kind="pipeline", weights_sha256=_sample_of(pipe), dtype=dtype)
    )


def _sample_of(pipe: Any) -> str:
    """Hash of some numbers of every matrix of the transformer, which a merged LoRA changes, too."""
    import torch

    digest = hashlib.sha256()
    for weight in pipe.transformer.parameters():
        some = weight.data.flatten()[:: max(1, weight.numel() // 64) | 1]
        digest.update(some.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()
