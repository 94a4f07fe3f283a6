"""From the parameters of a request to a job, and from its events to what an answer says."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import Request

from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.edit import EditRequest
from kontext_fast.pipeline.sizes import Size, SizePlan, check_requested_size, parse_size
from kontext_fast.server.backend import Backend
from kontext_fast.server.contract import Details
from kontext_fast.server.errors import ApiError, bad_value, job_error
from kontext_fast.server.images import Canvas, ImageDecoder
from kontext_fast.server.jobs import Event, EventStream, Finished, Job, JobFailed, ServiceFacts, Started
from kontext_fast.server.metrics import Metrics
from kontext_fast.server.middleware import REQUEST_ID
from kontext_fast.server.settings import MIB, ServerSettings
from kontext_fast.server.urls import UrlFetcher, is_data_url, read_data_url
from kontext_fast.server.verdicts import KnownVerdicts

if TYPE_CHECKING:
    from PIL.Image import Image

_Result = TypeVar("_Result")

DEADLINE_HEADER = "x-deadline-seconds"
_DRAWN_SEED_LIMIT = 2**32


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked for, under whatever names a route has for it."""

    prompt: str
    image: bytes | None
    """The content of a file; None for text-to-image."""
    images: int = 1
    size: Size | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    negative: str | None = None
    true_cfg: float = 1.0
    preset: str | None = None
    lora: str | None = None
    previews: int = 0


class ImageService:
    """What the routes of images share."""

    def __init__(self, settings: ServerSettings, backend: Backend, metrics: Metrics, verdicts: KnownVerdicts) -> None:
        self.settings = settings
        self.backend = backend
        self.verdicts = verdicts
        self._metrics = metrics
        self.decoder = ImageDecoder(settings.max_input_megapixels)
        self._fetcher = UrlFetcher(settings.url_hosts, int(settings.max_upload_mib * MIB))

    def facts(self) -> ServiceFacts:
        """Raises ApiError while nothing is loaded."""
        facts = self.backend.facts()
        if facts is None:
            raise job_error(JobFailed("The model is still loading; try again soon.", "not ready", retry_after_s=5.0))
        return facts

    async def fetch(self, url: str, param: str) -> bytes:
        """The image behind a data URL, or behind one that the operator allows. Raises ApiError."""
        try:
            return read_data_url(url) if is_data_url(url) else await self._fetcher.fetch(url)
        except InvalidInput as error:
            raise bad_value(str(error), param) from None

    async def job(self, wish: Wish, request: Request) -> Job:
        """The job of a request. Raises ApiError, which names the parameter that is to blame."""
        facts, settings = self.facts(), self.settings
        self._check(wish, facts)
        canvas = Canvas(wish.size, facts.native, facts.text_tokens)
        picture, plan = await self._read(wish.image, canvas)
        limit = self.max_pixels(facts)
        if plan.width * plan.height > limit:
            raise bad_value(f"The size {plan.width}x{plan.height} has more than {limit} pixels; ask for less.", "size")
        seed = secrets.randbelow(_DRAWN_SEED_LIMIT) if wish.seed is None else wish.seed
        try:
            edit = EditRequest(
                wish.prompt,
                picture,
                steps=wish.steps or settings.steps,
                guidance=settings.guidance if wish.guidance is None else wish.guidance,
                seed=seed,
                negative=wish.negative,
                true_cfg=wish.true_cfg,
                size=wish.size,
                batch=wish.images,
            )
        except InvalidInput as error:
            raise bad_value(str(error), _param_of(wish)) from None
        return Job(
            id=uuid.uuid4().hex,
            request=edit,
            size=plan,
            preset=wish.preset or facts.presets[0].name,
            lora=wish.lora,
            previews=wish.previews,
            deadline_s=self._deadline(request),
        )

    def submit(self, job: Job) -> EventStream:
        """Raises ApiError where the job is not accepted."""
        try:
            return self.backend.submit(job)
        except JobFailed as failure:
            raise self._failed(failure) from None

    async def events(self, stream: EventStream, job: Job) -> AsyncGenerator[Event, None]:
        """The events of `job`, counted. Closing it cancels the job. Raises ApiError where it has no result."""
        started = ended = False
        try:
            async for event in stream:
                if isinstance(event, Started):
                    started = True
                    self._metrics.started(event)
                elif isinstance(event, Finished):
                    ended = True
                    self._metrics.finished(job, event)
                yield event
        except JobFailed as failure:
            ended = True
            raise self._failed(failure) from None
        finally:
            if not ended:
                self._metrics.cancelled.labels("running" if started else "queued").inc()
            await stream.aclose()

    async def result(self, stream: EventStream, job: Job, request: Request) -> Finished:
        """What `job` makes; it is cancelled when the client leaves. Raises ApiError."""

        async def last() -> Finished:
            async with aclosing(self.events(stream, job)) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        return event
            raise RuntimeError("a job ended without a result")

        finished = await unless_disconnected(request, last)
        if finished is None:
            raise job_error(JobFailed("The client left.", "cancelled"))
        return finished

    def details(self, job: Job, result: Finished, request: Request) -> Details:
        """What an answer says about how its images were made."""
        facts, size, edit = self.facts(), job.size, job.request
        return Details(
            request_id=request.scope[REQUEST_ID],
            checkpoint=facts.checkpoint.name,
            preset=job.preset,
            verdict=self.verdicts.of(job.preset, facts, lora=job.lora),
            lora=job.lora,
            seed=result.seeds[0],
            steps=edit.steps,
            computed_steps=result.step_kinds.count("full"),
            step_kinds=list(result.step_kinds),
            guidance=edit.guidance,
            true_cfg=edit.true_cfg,
            width=size.width,
            height=size.height,
            explanation=size.explanation,
            queue_s=result.queue_s,
            run_s=result.run_s,
            preview_s=result.preview_s,
            lora_swap_s=result.swap_s,
            batch=result.batch,
            caution=facts.checkpoint.caution,
            cautions=list(result.cautions),
        )

    def max_pixels(self, facts: ServiceFacts) -> int:
        """Pixels of the largest output."""
        return int((self.settings.max_enlargement * facts.native) ** 2)

    def _check(self, wish: Wish, facts: ServiceFacts) -> None:
        settings = self.settings
        if wish.images > settings.max_images:
            raise bad_value(f"This server makes at most {settings.max_images} images a request; ask for fewer.", "n")
        if (wish.steps or 0) > settings.max_steps:
            raise bad_value(f"This server runs at most {settings.max_steps} steps; ask for fewer.", "steps")
        presets = [preset.name for preset in facts.presets]
        if wish.preset is not None and wish.preset not in presets:
            raise bad_value(f"This server runs no such preset; choose one of {', '.join(presets)}.", "preset")
        if wish.lora is not None and wish.lora not in facts.loras:
            known = f"choose one of {', '.join(facts.loras)}" if facts.loras else "it has none"
            raise bad_value(f"This server has no such LoRA; {known}.", "lora")

    async def _read(self, content: bytes | None, canvas: Canvas) -> tuple[Image | None, SizePlan]:
        try:
            without_image = canvas.plan(None)
        except InvalidInput as error:
            raise bad_value(str(error), "size") from None
        if content is None:
            return None, without_image
        try:
            decoded = await self.decoder.decode(content, canvas)
        except InvalidInput as error:
            raise bad_value(str(error), "image") from None
        return decoded.picture(), decoded.plan

    def _deadline(self, request: Request) -> float:
        text = request.headers.get(DEADLINE_HEADER)
        if text is None:
            return self.settings.deadline_s
        try:
            seconds = float(text)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            raise bad_value(f"The header {DEADLINE_HEADER} is not a positive number of seconds.", DEADLINE_HEADER)
        return min(seconds, self.settings.deadline_s)

    def _failed(self, failure: JobFailed) -> ApiError:
        if failure.reason != "cancelled":
            self._metrics.rejected.labels(failure.reason.replace(" ", "_")).inc()
        return job_error(failure)


async def unless_disconnected(request: Request, work: Callable[[], Awaitable[_Result]]) -> _Result | None:
    """What `work` returns; None, and `work` is cancelled, if the client leaves first."""
    working = asyncio.ensure_future(work())
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    """Returns when the client has left; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def requested_size(text: str) -> Size | None:
    """The size of "WIDTHxHEIGHT"; None for "auto". Raises ApiError."""
    if text == "auto":
        return None
    try:
        size = parse_size(text)
        check_requested_size(size)
    except InvalidInput as error:
        raise bad_value(str(error), "size") from None
    return size


def _param_of(wish: Wish) -> str | None:
    """The parameter that EditRequest refuses, of those that no route has checked."""
    if wish.negative is not None or wish.true_cfg > 1:
        return "negative_prompt" if wish.negative is None else "true_cfg"
    return "prompt" if not wish.prompt.strip() else None
