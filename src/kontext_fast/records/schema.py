"""What is stored about a run: raw samples and facts, never statistics.

One `ResultFile` holds the records of one bench or verify. Units are in the names: `_s` seconds, `_bytes` bytes.
Images are stored beside the file as `images/<hash>.png`, where the hash is the sha256 of mode, size and pixels.
Numbers are finite: what could not be computed is None, never NaN.

Schema history:
  1  first version
  2  steps are `full` or `skipped`. Version 1 had `refresh` (all of the transformer ran) and `reuse` (every block ran,
     but for some tokens only or without its attention). Both counted as computed steps, so both are read as `full`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from kontext_fast.records.names import kind_facts

SCHEMA_VERSION: Final = 2

StepKind = Literal["full", "skipped"]
"""full: a computed step, which ran the transformer; skipped: one that did not. Under a cache of blocks a skipped step
still ran the blocks that the cache looks at, usually one; `engine.flops.step_work` can count them."""


def upgraded_kind(kind: object) -> object:
    """The kind of a step as schema 2 has it."""
    return "full" if kind in ("refresh", "reuse") else kind


_StoredKind = Annotated[StepKind, BeforeValidator(upgraded_kind)]

Status = Literal["ok", "refused", "oom", "timeout", "crash", "interrupted", "not measured"]

Effect = Literal["exact", "numeric", "lossy"]

Mode = Literal["edit", "text-to-image"]

CompileCache = Literal["user", "cold", "warm"]
"""Which compiled artifacts a run found: the user's, none, or those that a `cold` run before it wrote."""

BASELINE: Final = "baseline"
CONTROL: Final = "baseline-again"
"""The A/A control: baseline a second time, under another name."""

EMULATED: Final = "kernel: emulated"
"""Label of runs whose rounding is real but whose time is not, so that they get no factor."""


class Stored(BaseModel):
    """Base of everything that is written to disk: frozen, and unknown keys are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AppliedOptimization(Stored):
    name: str
    effect: Effect
    parameters: dict[str, Any] = Field(default_factory=dict)
    revision: int = 1
    """Of the technique's code, which with the same parameters may round or take its time otherwise than in another."""


def deciding_images(plan: Iterable[AppliedOptimization]) -> tuple[AppliedOptimization, ...]:
    """What of `plan` decides the images. An exact technique changes no bit, which tests hold, so plans that differ in
    such ones alone make the same images, and a verdict on one is a verdict on the other."""
    return tuple(applied for applied in plan if applied.effect != "exact")


class Checkpoint(Stored):
    name: str
    """`tiny`, `random`, a folder's name or a Hub id; never a path of the user's machine."""
    kind: str
    """How it was found: `tiny`, `random`, `folder` (a single file in one included) or `hub`."""
    weights_sha256: str | None
    """Of the transformer's weight files; None for `random`, whose weights come from a seed."""
    dtype: str
    transformer_parameters: int

    @property
    def random_weights(self) -> bool:
        return kind_facts(self.kind).random_weights

    @property
    def has_judge(self) -> bool:
        return kind_facts(self.kind).has_judge

    @property
    def caution(self) -> str | None:
        return kind_facts(self.kind).caution


class StoredItem(Stored):
    """One (input image, instruction) pair that the samples refer to by `id`."""

    id: str
    instruction: str
    image: str | None
    """Hash of the input image; None for text-to-image."""
    target: str | None = None
    """Hash of a target image, where there is one."""
    kind: str | None = None
    """Kind of edit, for tables per kind."""
    open: bool | None = None
    """True where many outputs are right."""


class Cell(Stored):
    """One point of a suite, as requested: what a checkpoint really runs for it is a `Workload`."""

    mode: Mode
    size: str
    """`native` or "WIDTHxHEIGHT" in pixels."""
    steps: int
    batch: int


class Workload(Stored):
    mode: Mode
    width: int
    height: int
    """Output size that was really run, in pixels."""
    reference_width: int | None
    reference_height: int | None
    text_tokens: int
    image_tokens: int
    reference_tokens: int
    steps: int
    guidance: float
    true_cfg: float
    batch: int
    items: tuple[str, ...]
    seeds: tuple[int, ...]


class Memory(Stored):
    """Peaks over one call; None where the device has no such counter."""

    allocated_peak_bytes: int | None = None
    reserved_peak_bytes: int | None = None
    device_process_peak_bytes: int | None = None
    host_rss_peak_bytes: int | None = None


class GpuReadings(Stored):
    """Readings of the driver during one call, as time series; None where the driver has no such reading."""

    at_s: tuple[float, ...]
    """When each reading was taken, since the call began; the other series have as many entries."""
    power_w: tuple[float | None, ...]
    clock_sm_mhz: tuple[int | None, ...]
    clock_memory_mhz: tuple[int | None, ...]
    temperature_c: tuple[int | None, ...]
    throttle_reasons: tuple[str, ...]
    """Every reason of any reading, without idling."""
    energy_j: float | None
    """Of the whole card, by its own counter."""
    foreign_processes: int | None
    """The most other processes that computed on the card at any reading."""


class Sample(Stored):
    """One measured call of the pipeline (PIL in, PIL out)."""

    item: str
    seed: int
    warmup: bool
    wall_s: float = Field(gt=0)
    """Synchronized wall time end to end, text encoders included, saving the file excluded."""
    stages_s: dict[str, float]
    """text_encode, vae_encode, denoise, vae_decode."""
    steps_s: tuple[float, ...]
    step_kinds: tuple[_StoredKind, ...]
    memory: Memory
    images: tuple[str, ...]
    """Hashes of the stored outputs, one per image of the batch; empty where images were not stored."""
    graphs_compiled: int | None = None
    """Graphs that torch.compile compiled during the call; a measured call should have none."""
    gpu: GpuReadings | None = None
    """None on a CPU and where the driver cannot be queried."""


class Measurement(Stored):
    workload: Workload
    first_call_s: float | None
    """Wall time of the very first call in the process, compilation included."""
    samples: tuple[Sample, ...]
    cell: Cell | None = None
    """The point of the suite that requested this workload."""


class Score(Stored):
    """The score of a metric or of the judge for one stored output; added after the run."""

    item: str
    seed: int
    image: str
    metric: str
    value: float | bool | None
    """None where the metric could not be computed; `note` says why."""
    note: str | None = None


class Output(Stored):
    """One image of a verification, which is compared and not timed."""

    item: str
    seed: int
    image: str | None
    """Hash of the stored image; None where the edit failed."""
    step_kinds: tuple[_StoredKind, ...] = ()
    failure: str | None = None
    """One sentence, where there is no image, or one at the second attempt only: a call of several items failed for a
    reason that none of them repeated alone."""


ArmRole = Literal["baseline", "preset", "order", "condition", "steps", "floor", "control"]
"""order: the preset again with its requests in another order; condition: baseline or a preset used in another way;
steps: baseline with fewer steps; floor: baseline again, differing by rounding at most; control: outputs that are worse
on purpose."""

Condition = Literal["one by one", "true CFG"]
"""one by one: calls of a single image, each of which but the first of an item repeats its image and instruction; true
CFG: the same with a negative prompt."""


class Arm(Stored):
    """Which part of a verification a record is."""

    name: str
    role: ArmRole
    preset: str | None = None
    """Whose order or condition is checked, for `order` and `condition`; baseline, too."""
    condition: Condition | None = None


class MetricFacts(Stored):
    """A metric as it was, or why it was not measured."""

    name: str
    model: str | None = None
    weights_sha256: str | None = None
    not_measured: str | None = None


class Verification(Stored):
    """What all arms of a verification have in common, fixed before the first image."""

    dataset: str
    steps: int
    guidance: float
    seeds: tuple[int, ...]
    batch: int
    """Images per call at most: of one item, or of several of one size."""
    control_items: tuple[str, ...]
    """Items of all arms but baseline and the presets."""
    margins: dict[str, Any]
    margins_sha256: str
    rejected: tuple[str, ...] = ()
    """Items of the data set that could not be used, one sentence each."""
    metrics: tuple[MetricFacts, ...] = ()


class ServedRequest(Stored):
    """One request of a load test."""

    at_s: float
    """When it was due, since the test began; a client that is late does not move it."""
    latency_s: float
    """From when it was due until it was answered, or until its client left."""
    status: int | None
    """Of the answer; None where there is none."""
    left: bool = False
    """Whether its client was to leave before the answer, and did."""
    images: int = 0
    queue_s: float | None = None
    run_s: float | None = None


class LoadTest(Stored):
    """Requests that came at random times, whatever the server did with those before."""

    rate_per_s: float
    """At which requests came on average, as a Poisson process."""
    duration_s: float
    """From the first request that was due until the last one was answered."""
    deadline_s: float
    seed: int
    workers: int
    busy_s: float
    """Time in which the workers ran jobs, all of them together."""
    requests: tuple[ServedRequest, ...]
    probes_s: tuple[float, ...]
    """Latencies of `/livez` meanwhile."""


class Record(Stored):
    """One run: one process that loaded a checkpoint, applied one plan and measured one or more workloads."""

    run_id: str
    created_at: str
    """UTC, ISO 8601."""
    preset: str
    plan: tuple[AppliedOptimization, ...]
    checkpoint: Checkpoint | None
    """None where the process ended before it loaded one."""
    environment: dict[str, Any]
    """Facts of machine and software. Runs are compared only on the same machine: see `names.machine_identity`."""
    round: int
    """Block of the randomized design; all runs of a block were on the same machine."""
    order: int
    """Position of the run in time."""
    status: Status
    reason: str | None = None
    """One sentence for every status but `ok`."""
    stderr_tail: str | None = None
    load_s: float | None = None
    apply_s: float | None = None
    cells: tuple[Cell, ...] = ()
    """What the run was to measure, in order; where it ended early, `measurements` has fewer."""
    compile_cache: CompileCache = "user"
    measurements: tuple[Measurement, ...] = ()
    load_test: LoadTest | None = None
    """Where a server was put under load; its measurement then holds the calls as the worker timed them."""
    arm: Arm | None = None
    outputs: tuple[Output, ...] = ()
    """The images of an arm of a verification."""
    edits_s: tuple[float, ...] = ()
    """Wall times of single edits of an arm, one after another in the verification's own process: for the frontier
    only, since a claim about speed takes processes of its own (`measurements`)."""
    scores: tuple[Score, ...] = ()
    labels: tuple[str, ...] = ()
    """Labels that must be shown with every number of this run, e.g. `fixed schedule`, `hit rate meaningless`."""


class ResultFile(Stored):
    schema_version: Annotated[Literal[2], BeforeValidator(lambda version: 2 if version == 1 else version)] = (
        SCHEMA_VERSION
    )
    kontext_fast_version: str
    command: str
    suite: str
    suite_sha256: str
    seed: int
    """Of the order in which runs were scheduled."""
    items: tuple[StoredItem, ...]
    records: tuple[Record, ...]
    verification: Verification | None = None
    """None where speed was measured."""
