"""A verification from beginning to end: make the outputs of every arm, spoil some, score all, store everything."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kontext_fast.bench.environment import environment_facts
from kontext_fast.bench.recorder import redact
from kontext_fast.datasets.base import Dataset, Item
from kontext_fast.errors import Cancelled, InvalidInput, OutOfMemory, Refused
from kontext_fast.metrics.base import Control, Setting
from kontext_fast.metrics.scorer import Scorer
from kontext_fast.optimizations.machine import Machine
from kontext_fast.optimizations.plan import Plan as AppliedPlan
from kontext_fast.optimizations.plan import resolve
from kontext_fast.optimizations.presets import Preset
from kontext_fast.pipeline.device import choose_device
from kontext_fast.pipeline.load import kind_of
from kontext_fast.records.names import machine_name
from kontext_fast.records.schema import (
    BASELINE,
    EMULATED,
    Arm,
    Output,
    Record,
    ResultFile,
    Status,
    StoredItem,
    Verification,
)
from kontext_fast.records.store import ResultStore
from kontext_fast.verify.arms import Plan, arms
from kontext_fast.verify.controls import OTHER_POSITION, spoiled
from kontext_fast.verify.image_generator import ArmRunner, Settings
from kontext_fast.verify.journal import Journal
from kontext_fast.verify.progress import OnProgress, ProgressTracker
from kontext_fast.verify.request import Request, dataset_of
from kontext_fast.verify.scoring import ArmOutputs, score_arms
from kontext_fast.version import __version__


def verify(
    request: Request, out: Path, *, resume: bool = False, command: str = "verify", on_progress: OnProgress | None = None
) -> ResultFile:
    """Verify presets and store records, images and scores in the folder `out`; the verdicts are computed from them.

    With `resume`, what an earlier call in `out` made is kept. A preset that this machine refuses is a record, too.
    Raises InvalidInput, Refused or OutOfMemory where nothing can be verified, and Cancelled on Ctrl-C.
    """
    session = _Session(request, out, command, on_progress or (lambda _: None))
    try:
        session.begin(resume=resume)
        session.make_outputs()
        session.spoil_outputs()
        session.score()
    except KeyboardInterrupt:
        raise Cancelled(
            f"The verification was interrupted; go on with the same command and --resume --out {out}."
        ) from None
    return session.store.load()


class _Session:
    """One verification while it runs."""

    def __init__(self, request: Request, out: Path, command: str, on_progress: OnProgress) -> None:
        self._request = request
        self._command = redact(command)
        self._on_progress = on_progress
        self.store = ResultStore(out)
        self._journal = Journal(out)
        self._records: dict[str, Record] = {}

    def begin(self, *, resume: bool) -> None:
        request = self._request
        if not resume and self.store.records_file.exists():
            raise InvalidInput("The folder already has records; choose another one, or add --resume.")
        device = choose_device(request.device)
        dataset = dataset_of(request)
        # Ids are hashes, so that the first ones are an arbitrary choice which looks at no result.
        self._items = list(dataset.items)[: request.items]
        self._few = self._items[: request.control_items]
        self._settings = Settings(
            seeds=tuple(range(request.seed, request.seed + request.seeds)), guidance=request.guidance
        )
        self._applied = {
            name: plan for preset in request.presets for name, plan in [_resolved(preset, device, request)]
        }
        self._studio = ArmRunner(request.checkpoint, device, self._settings, request.batch)
        self._studio.fit_batch(self._items[0])
        self._environment = environment_facts(str(device))
        self._device = device
        setup = self._setup(dataset)
        if resume:
            self._journal.resume(setup)
            if self.store.records_file.exists():
                known = self.store.load()
                self._records = {record.arm.name: record for record in known.records if record.arm}
        else:
            self._journal.begin(setup)
        self._verification = Verification(
            dataset=dataset.name,
            steps=request.steps,
            guidance=request.guidance,
            seeds=self._settings.seeds,
            batch=self._studio.batch,
            control_items=tuple(item.id for item in self._few),
            margins=request.margins.model_dump(mode="json"),
            margins_sha256=request.margins.sha256,
            rejected=tuple(map(redact, dataset.rejected)),
        )
        self._stored_items = tuple(self._stored(item) for item in self._items)
        self._write()

    def _setup(self, dataset: Dataset) -> dict[str, Any]:
        """Everything that decides an output; a resumed verification must agree in it."""
        facts = self._studio.facts
        return {
            "checkpoint": facts.name,
            "weights": facts.weights_sha256,
            "precision": facts.dtype,
            "machine": machine_name(self._environment),
            "version": __version__,
            "presets": {
                name: plan if isinstance(plan, str) else plan.content_hash for name, plan in self._applied.items()
            },
            "dataset": dataset.name,
            "items": hashlib.sha256(" ".join(item.id for item in self._items).encode()).hexdigest(),
            "control items": len(self._few),
            "seeds": self._settings.seeds,
            "steps": self._request.steps,
            "guidance": self._settings.guidance,
            "batch": self._studio.batch,
            "frontier": self._request.frontier,
            "margins": self._request.margins.sha256,
        }

    def _stored(self, item: Item) -> StoredItem:
        target = item.target
        return StoredItem(
            id=item.id,
            instruction=item.instruction,
            image=self.store.put_image(item.image),
            target=None if target is None else self.store.put_image(target),
            kind=item.kind,
            open=item.open,
        )

    def make_outputs(self) -> None:
        """Run every arm that has items left to do."""
        request = self._request
        plans = list(
            arms(
                request.presets,
                self._items,
                self._few,
                steps=request.steps,
                seeds=request.seeds,
                batch=self._studio.batch,
                frontier=request.frontier,
            )
        )
        left = {plan.arm.name: self._left(plan) for plan in plans}
        clock = ProgressTracker(sum(len(plan.items) for plan in plans), sum(map(len, left.values())), self._on_progress)
        for plan in plans:
            name = plan.arm.name
            if name in self._records and not left[name]:
                continue
            status, reason = self._run(plan, left[name], clock)
            edits_s = self._time(plan) if request.frontier and plan.timed and status == "ok" else ()
            outputs = [output for of_item in self._journal.done(name).values() for output in of_item]
            self._record(plan.arm, plan.preset_name, outputs, status, reason, edits_s)

    def _left(self, plan: Plan) -> frozenset[int]:
        """Positions of the items that have no output yet."""
        done = self._journal.done(plan.arm.name)
        if plan.arm.name in self._records and not done:
            return frozenset()
        return frozenset(index for index, item in enumerate(plan.items) if item.id not in done)

    def _run(self, plan: Plan, items: frozenset[int], clock: ProgressTracker) -> tuple[Status, str | None]:
        """The status of the arm, and why it has no outputs."""
        name = plan.arm.name
        if name == OTHER_POSITION and self._studio.batch == 1:
            clock.skip(len(items))
            return "not measured", "Each image was made by itself, so there is no other position in a batch."
        if isinstance(refusal := self._applied.get(plan.preset_name), str):
            clock.skip(len(items))
            return "refused", refusal
        clock.show(name)
        # A call of which items are missing is made again whole: in a smaller one they would round otherwise.
        calls = [call for call in self._studio.calls(plan) if not items.isdisjoint(call)] if items else []
        try:
            for made in self._studio.make(plan, calls, self.store.put_image):
                new = [one for one in made if one.item.id not in self._journal.done(name)]
                self._journal.add(name, [(one.item.id, one.outputs, one.latents) for one in new])
                clock.step(name, len(new))
        except (Refused, OutOfMemory) as error:
            if plan.arm.role == "baseline":
                raise
            return ("oom" if isinstance(error, OutOfMemory) else "refused"), str(error)
        return "ok", None

    def _time(self, plan: Plan) -> tuple[float, ...]:
        """Seconds of single edits; none where the kernels are emulated, and where an edit fails."""
        applied = self._applied.get(plan.preset_name)
        if isinstance(applied, AppliedPlan) and EMULATED in applied.labels:
            return ()
        try:
            return self._studio.time(plan)
        except Cancelled:
            raise
        except Exception:  # noqa: BLE001 - why it fails is said by its outputs
            return ()

    def spoil_outputs(self) -> None:
        """The controls that are made from pictures: baseline's outputs made worse, and the input as the output."""
        inputs = {item.id: item for item in self._few}
        baseline = [output for output in self._records[BASELINE].outputs if output.item in inputs and output.image]
        for control in (Control.BLUR, Control.JPEG, Control.UNEDITED):
            if control.value in self._records:
                continue
            outputs = []
            for output in baseline:
                image = self._picture(output)
                if control is Control.UNEDITED:
                    worse = inputs[output.item].image.resize(image.size)
                else:
                    worse = spoiled(image, control)
                outputs.append(Output(item=output.item, seed=output.seed, image=self.store.put_image(worse)))
            self._record(Arm(name=control.value, role="control"), control.value, outputs, "ok", None)

    def _picture(self, output: Output) -> Any:
        from PIL import Image

        with Image.open(self.store.image_path(output.image or "")) as image:
            return image.convert("RGB")

    def score(self) -> None:
        """Score every arm that has no scores yet."""
        self._studio.release()
        facts = self._studio.facts
        setting = Setting(
            random_weights=facts.random_weights,
            has_judge=facts.has_judge,
            weights=self._request.weights,
            device=str(self._device),
        )
        scorer = Scorer(setting, self._items)
        self._verification = self._verification.model_copy(update={"metrics": scorer.facts})
        waiting = [name for name, record in self._records.items() if record.outputs and not record.scores]
        items = {item.id: item for item in self._items}
        outputs = ArmOutputs(self._records, items, self.store, self._journal)
        total = sum(len(outputs.of(name)) for name in waiting)
        clock = ProgressTracker(total, total, self._on_progress)
        clock.show("scoring")
        for name, scores in score_arms(scorer, outputs, waiting, lambda done: clock.step("scoring", done)):
            self._records[name] = self._records[name].model_copy(update={"scores": scores})
            self._write()
        self._write()

    def _record(
        self,
        arm: Arm,
        preset: str,
        outputs: Sequence[Output],
        status: Status,
        reason: str | None,
        edits_s: tuple[float, ...] = (),
    ) -> None:
        made = any(output.image for output in outputs)
        if status == "ok" and not made:
            failures = [output.failure for output in outputs if output.failure]
            status, reason = "crash", failures[0] if failures else "There was nothing to make."
        applied = self._applied.get(preset)
        plan = applied if isinstance(applied, AppliedPlan) else None
        self._records[arm.name] = Record(
            run_id=secrets.token_hex(8),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            preset=preset,
            plan=plan.applied if plan else (),
            labels=plan.labels if plan else (),
            checkpoint=self._studio.facts,
            environment=self._environment,
            round=0,
            order=len(self._records),
            status=status,
            reason=None if reason is None else redact(reason),
            arm=arm,
            outputs=tuple(outputs),
            edits_s=edits_s,
        )
        self._write()

    def _write(self) -> None:
        self.store.write(
            ResultFile(
                kontext_fast_version=__version__,
                command=self._command,
                suite="verify",
                suite_sha256=self._request.margins.sha256,
                seed=self._request.seed,
                items=self._stored_items,
                records=tuple(self._records.values()),
                verification=self._verification,
            )
        )


def _resolved(preset: str | Preset, device: Any, request: Request) -> tuple[str, AppliedPlan | str]:
    """The preset's name with its plan, or why this machine refuses it. Raises InvalidInput for an impossible one."""
    name = preset if isinstance(preset, str) else preset.name
    try:
        random_weights = kind_of(request.checkpoint).random_weights
        return name, resolve(preset, Machine.detect(device), architecture_only=random_weights)
    except Refused as error:
        return name, str(error)
