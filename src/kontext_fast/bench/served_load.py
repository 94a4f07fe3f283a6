"""Puts a running server under load: edits that come as a Poisson process, whatever became of those before.

Arrivals are drawn beforehand, so that a slow server has a queue and not fewer requests, and a latency counts from when
its request was due: a generator that waits for answers would leave out what users wait for ("coordinated omission",
Tene, "How NOT to Measure Latency", 2013).
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any

from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.sizes import plan_size
from kontext_fast.records.schema import (
    AppliedOptimization,
    Checkpoint,
    LoadTest,
    Measurement,
    Memory,
    Record,
    ResultFile,
    Sample,
    ServedRequest,
    StoredItem,
    Workload,
)
from kontext_fast.version import __version__

if TYPE_CHECKING:
    import httpx

_PROBE_S = 0.25
_OK = 200
_PICTURES = 8
_LARGEST_PICTURE = 1024
"""Side in pixels of what is uploaded."""


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """How much is sent, and for how long."""

    rate_per_s: float
    seconds: float
    """In which requests come; the test ends with the last answer."""
    deadline_s: float
    leaving_share: float = 0.0
    """Of the clients, that leave before their answer."""
    steps: int | None = None
    """None: the server's default."""
    preset: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rate_per_s <= 0 or self.seconds <= 0 or self.deadline_s <= 0 or not 0 <= self.leaving_share < 1:
            raise InvalidInput("A load needs a rate, a time and a deadline above 0, and a share of leaving below 1.")


@dataclass(frozen=True)
class _Arrival:
    at_s: float
    seed: int
    leaves_after_s: float | None


@dataclass
class _Client:
    """Sends the requests of one test, and keeps what became of them."""

    http: httpx.AsyncClient
    plan: LoadPlan
    forms: Sequence[tuple[str, bytes]]
    """Instructions with PNG files."""
    start: float = 0.0
    requests: list[ServedRequest] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    """`kontext` of each answer."""
    probes_s: list[float] = field(default_factory=list)

    async def edit(self, arrival: _Arrival) -> None:
        await asyncio.sleep(max(0.0, self.start + arrival.at_s - time.monotonic()))
        try:
            async with asyncio.timeout(arrival.leaves_after_s):
                answer, status = await self.post(arrival.seed)
        except TimeoutError:
            self._note(arrival, None, {})
            return
        self._note(arrival, status, answer)

    async def post(self, seed: int) -> tuple[dict[str, Any], int | None]:
        """The answer and its status; an empty one and None where the connection was lost."""
        import httpx

        instruction, image = self.forms[seed % len(self.forms)]
        data = {"prompt": instruction, "seed": str(seed)}
        for name, value in (("steps", self.plan.steps), ("preset", self.plan.preset)):
            if value is not None:
                data[name] = str(value)
        headers = {"x-deadline-seconds": str(self.plan.deadline_s)}
        try:
            response = await self.http.post(
                "/v1/images/edits", data=data, files={"image": ("image.png", image, "image/png")}, headers=headers
            )
        except httpx.TransportError:
            return {}, None
        return response.json(), response.status_code

    async def probe(self) -> None:
        while True:
            start = time.perf_counter()
            (await self.http.get("/livez")).raise_for_status()
            self.probes_s.append(time.perf_counter() - start)
            await asyncio.sleep(_PROBE_S)

    def _note(self, arrival: _Arrival, status: int | None, answer: dict[str, Any]) -> None:
        details: dict[str, Any] = answer.get("kontext", {})
        if details:
            self.answers.append(details)
        self.requests.append(
            ServedRequest(
                at_s=arrival.at_s,
                latency_s=time.monotonic() - self.start - arrival.at_s,
                status=status,
                left=status is None and arrival.leaves_after_s is not None,
                images=len(answer.get("data", ())),
                queue_s=details.get("queue_s"),
                run_s=details.get("run_s"),
            )
        )


async def service_seconds(url: str, plan: LoadPlan) -> float:
    """Seconds that one edit takes in an idle server, the mean of three. Raises InvalidInput where there is none."""
    async with _http(url) as http:
        model = await _model(http)
        client = _Client(http, plan, _forms(model))
        seconds = []
        for number in range(3):
            answer, status = await client.post(number)
            if status != _OK:
                message = answer["error"]["message"] if "error" in answer else "the connection was lost"
                raise InvalidInput(f"The server does not serve the load: {message}")
            seconds.append(float(answer["kontext"]["run_s"]))
    return sum(seconds) / len(seconds)


async def run_load(url: str, plan: LoadPlan) -> ResultFile:
    """Put the server at `url` under load, and return the records of it. Raises InvalidInput where none answers."""
    async with _http(url) as http:
        model = await _model(http)
        client = _Client(http, plan, _forms(model))
        before = await _busy(http)
        client.start = time.monotonic()
        probing = asyncio.create_task(client.probe())
        await asyncio.gather(*(client.edit(arrival) for arrival in _arrivals(plan)))
        duration = time.monotonic() - client.start
        probing.cancel()
        after = await _busy(http)
    test = LoadTest(
        rate_per_s=plan.rate_per_s,
        duration_s=duration,
        deadline_s=plan.deadline_s,
        seed=plan.seed,
        workers=len(after),
        busy_s=sum(after) - sum(before),
        requests=tuple(sorted(client.requests, key=lambda request: request.at_s)),
        probes_s=tuple(client.probes_s),
    )
    return _result(model["kontext"], plan, test, client.answers)


def _arrivals(plan: LoadPlan) -> list[_Arrival]:
    """Drawn once, so that they do not depend on the server."""
    draw = random.Random(plan.seed)
    arrivals: list[_Arrival] = []
    at_s = draw.expovariate(plan.rate_per_s)
    while at_s < plan.seconds:
        leaves = draw.random() < plan.leaving_share
        arrivals.append(_Arrival(at_s, len(arrivals), draw.uniform(0.05, 1.0) / plan.rate_per_s if leaves else None))
        at_s += draw.expovariate(plan.rate_per_s)
    return arrivals


def _http(url: str) -> httpx.AsyncClient:
    import httpx

    # No proxy and no limit on connections: the server alone decides who waits.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False)


async def _model(http: httpx.AsyncClient) -> dict[str, Any]:
    import httpx

    try:
        response = await http.get("/v1/models")
    except httpx.TransportError:
        raise InvalidInput(f"No server answers at {http.base_url}; start one with kontext serve.") from None
    if response.status_code != _OK:
        raise InvalidInput(f"The server at {http.base_url} answered {response.status_code}; wait until it is ready.")
    (model,) = response.json()["data"]
    return dict(model)


async def _busy(http: httpx.AsyncClient) -> list[float]:
    """Seconds that each worker was busy since the server started."""
    return [worker["busy_s"] for worker in (await http.get("/health")).json()["workers"]]


def _forms(model: dict[str, Any]) -> list[tuple[str, bytes]]:
    from kontext_fast.datasets.shapes import held_out

    forms = []
    for item in held_out(_PICTURES):
        content = BytesIO()
        item.render(min(model["kontext"]["native"], _LARGEST_PICTURE)).save(content, "PNG")
        forms.append((item.instruction, content.getvalue()))
    return forms


def _result(service: dict[str, Any], plan: LoadPlan, test: LoadTest, answers: list[dict[str, Any]]) -> ResultFile:
    name = plan.preset or service["presets"][0]["name"]
    preset = next(preset for preset in service["presets"] if preset["name"] == name)
    record = Record(
        run_id=uuid.uuid4().hex,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        preset=name,
        plan=tuple(AppliedOptimization(**optimization) for optimization in preset["optimizations"]),
        checkpoint=Checkpoint(**service["checkpoint"]),
        environment=service["environment"],
        round=0,
        order=0,
        status="ok" if answers else "not measured",
        reason=None if answers else "No request was served.",
        measurements=tuple(_measurement(service, answers)),
        labels=tuple(preset["labels"]),
        load_test=test,
    )
    return ResultFile(
        kontext_fast_version=__version__,
        command="serve_load",
        suite="load",
        suite_sha256="",
        seed=plan.seed,
        items=(StoredItem(id="load", instruction="held-out edits of shapes", image=None),),
        records=(record,),
    )


def _measurement(service: dict[str, Any], answers: list[dict[str, Any]]) -> list[Measurement]:
    """The calls as the worker timed them; those of one size, which a load test has."""
    if not answers:
        return []
    first = answers[0]
    side = min(service["native"], _LARGEST_PICTURE)
    size = plan_size((side, side), requested=None, native=service["native"], text_tokens=service["text_tokens"])
    workload = Workload(
        mode="edit",
        width=size.width,
        height=size.height,
        reference_width=size.reference_width,
        reference_height=size.reference_height,
        text_tokens=size.text_tokens,
        image_tokens=size.image_tokens,
        reference_tokens=size.reference_tokens,
        steps=first["steps"],
        guidance=first["guidance"],
        true_cfg=first["true_cfg"],
        batch=1,
        items=("load",),
        seeds=tuple(answer["seed"] for answer in answers),
    )
    samples = tuple(
        Sample(
            item="load",
            seed=answer["seed"],
            warmup=False,
            wall_s=answer["run_s"],
            stages_s={},
            steps_s=(),
            step_kinds=tuple(answer["step_kinds"]),
            memory=Memory(),
            images=(),
        )
        for answer in answers
    )
    return [Measurement(workload=workload, first_call_s=None, samples=samples)]
