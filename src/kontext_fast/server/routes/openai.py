"""OpenAI's API for images: `/v1/images/edits`, `/v1/images/generations` and `/v1/models`."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse, ServerSentEvent

from kontext_fast.server.bodies import BodyReader, Form, validated
from kontext_fast.server.contract import (
    UNSUPPORTED,
    AnswerImage,
    Details,
    ImageParameters,
    ImagesAnswer,
    ModelAnswer,
    ModelsAnswer,
    PresetAnswer,
    ServiceDetails,
    TokenDetails,
    Usage,
)
from kontext_fast.server.errors import ApiError, ErrorBody, bad_value
from kontext_fast.server.images import encode
from kontext_fast.server.jobs import EventStream, Finished, Job, Preview, Started, StepDone
from kontext_fast.server.routes.schema import ERRORS, edit_body, json_body
from kontext_fast.server.service import ImageService, Wish, requested_size

Kind = Literal["image_edit", "image_generation"]

_PING_S = 15
"""Between comments that keep a silent stream open."""


def openai_router(service: ImageService, bodies: BodyReader) -> APIRouter:
    router = APIRouter(tags=["images"], responses=ERRORS)
    created = int(time.time())

    @router.post(
        "/v1/images/edits",
        summary="Edit an image as the prompt says",
        openapi_extra=edit_body(),
        responses={200: _SUCCESS},
        response_model=ImagesAnswer,
    )
    async def edits(request: Request) -> Response:
        form = await bodies.form(request)
        parameters = validated(ImageParameters, _parameters_of(form), strict=False)
        image = await _image_of(form, service)
        return await _answer(service, request, parameters, image, "image_edit")

    @router.post(
        "/v1/images/generations",
        summary="Draw an image from the prompt alone",
        openapi_extra=json_body(ImageParameters),
        responses={200: _SUCCESS},
        response_model=ImagesAnswer,
    )
    async def generations(request: Request) -> Response:
        parameters = validated(ImageParameters, await bodies.json(request), strict=True)
        return await _answer(service, request, parameters, None, "image_generation")

    @router.get("/v1/models", summary="What is served, and what requests may ask for", response_model=ModelsAnswer)
    async def models() -> ModelsAnswer:
        return ModelsAnswer(data=[_model(service, created)])

    @router.get(
        "/v1/models/{name:path}",
        summary="The one model that is served",
        response_model=ModelAnswer,
        responses={404: {"model": ErrorBody, "description": "There is no such model."}},
    )
    async def model(name: str) -> ModelAnswer:
        known = _model(service, created)
        if name != known.id:
            raise ApiError(404, f"There is no such model; use {known.id}.", code="model_not_found", param="model")
        return known

    return router


_SUCCESS: dict[str, Any] = {
    "description": "The images; with `stream`, server-sent events.",
    "content": {
        "text/event-stream": {
            # Of each event: its name, and its JSON as text.
            "schema": {
                "type": "object",
                "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
                "required": ["event", "data"],
            }
        }
    },
}


def _parameters_of(form: Form) -> dict[str, str]:
    """Without those that name the image. Raises ApiError."""
    for name, _ in (*form.files, *form.repeated):
        if name in UNSUPPORTED:
            message = f"The parameter {name!r} is not supported: {UNSUPPORTED[name]}."
            raise ApiError(400, message, code="unsupported_parameter", param=name)
        if name not in ("image", "url"):
            raise bad_value(f"The parameter {name!r} is no file and no list here; send it once, as text.", name)
    return {name: value for name, value in form.fields.items() if name not in ("image", "url")}


async def _image_of(form: Form, service: ImageService) -> bytes:
    """The content of the one image, whichever way it was sent. Raises ApiError."""
    files = [content for name, content in form.files if name == "image"]
    texts = [*((name, form.fields[name]) for name in ("image", "url") if name in form.fields), *form.repeated]
    if not files and not texts:
        raise bad_value("There is no image; send a file as `image`, or an address as `url`.", "image")
    if len(files) + len(texts) > 1:
        raise bad_value("FLUX.1-Kontext takes one image; send one, or paste several into one picture.", "image")
    if files:
        return files[0]
    ((name, url),) = texts
    return await service.fetch(url, name)


async def _answer(
    service: ImageService, request: Request, parameters: ImageParameters, image: bytes | None, kind: Kind
) -> Response:
    _check_combinations(parameters)
    wish = Wish(
        prompt=parameters.prompt,
        image=image,
        images=parameters.n,
        size=requested_size(parameters.size),
        seed=parameters.seed,
        steps=parameters.steps,
        guidance=parameters.guidance,
        negative=parameters.negative_prompt,
        true_cfg=parameters.true_cfg,
        preset=parameters.preset,
        lora=parameters.lora,
        previews=parameters.partial_images,
    )
    job = await service.job(wish, request)
    stream = service.submit(job)
    if parameters.stream:
        events = _Stream(service, request, parameters, job, kind).events(stream)
        return EventSourceResponse(events, ping=_PING_S, headers={"Cache-Control": "no-store"})
    result = await service.result(stream, job, request)
    details = service.details(job, result, request)
    return JSONResponse((await _images_answer(parameters, job, result, details)).model_dump(mode="json"))


def _check_combinations(parameters: ImageParameters) -> None:
    if parameters.output_compression is not None and parameters.output_format == "png":
        raise bad_value("PNG has no `output_compression`; leave it out, or ask for jpeg or webp.", "output_compression")
    for name in ("partial_images", "progress"):
        if getattr(parameters, name) and not parameters.stream:
            raise bad_value(f"`{name}` needs `stream`; set it to true.", name)


async def _images_answer(parameters: ImageParameters, job: Job, result: Finished, details: Details) -> ImagesAnswer:
    contents = [await _base64(picture, parameters) for picture in result.pictures]
    return ImagesAnswer(
        created=int(time.time()),
        data=[AnswerImage(b64_json=content, seed=seed) for content, seed in zip(contents, result.seeds, strict=True)],
        output_format=parameters.output_format,
        size=_size_of(job),
        usage=_usage(job),
        kontext=details,
    )


class _Stream:
    """The server-sent events of one request."""

    def __init__(
        self, service: ImageService, request: Request, parameters: ImageParameters, job: Job, kind: Kind
    ) -> None:
        self._service = service
        self._request = request
        self._parameters = parameters
        self._job = job
        self._kind = kind

    async def events(self, stream: EventStream) -> AsyncIterator[ServerSentEvent]:
        try:
            async with aclosing(self._service.events(stream, self._job)) as events:
                async for event in events:
                    async for sent in self._sent(event):
                        yield sent
        except ApiError as error:
            yield _event("error", error.body())

    async def _sent(self, event: Started | StepDone | Preview | Finished) -> AsyncIterator[ServerSentEvent]:
        if isinstance(event, Preview):
            partial = await self._picture(event.picture, event.image)
            yield self._event("partial_image", {"partial_image_index": event.index, **partial})
        elif isinstance(event, Finished):
            details = self._service.details(self._job, event, self._request).model_dump(mode="json")
            for index, picture in enumerate(event.pictures):
                content = await self._picture(picture, index)
                content |= {"seed": event.seeds[index], "usage": _usage(self._job).model_dump(), "kontext": details}
                yield self._event("completed", content)
        elif self._parameters.progress:
            if isinstance(event, Started):
                yield _event("kontext.started", {"type": "kontext.started", "queue_s": event.queue_s})
            else:
                yield _event("kontext.step", {"type": "kontext.step", "done": event.done, "total": event.total})

    async def _picture(self, picture: Any, index: int) -> dict[str, Any]:
        return {
            "b64_json": await _base64(picture, self._parameters),
            "created_at": int(time.time()),
            "size": _size_of(self._job),
            "quality": "auto",
            "background": "opaque",
            "output_format": self._parameters.output_format,
            "image_index": index,
        }

    def _event(self, name: str, content: dict[str, Any]) -> ServerSentEvent:
        kind = f"{self._kind}.{name}"
        return _event(kind, {"type": kind, **content})


def _event(name: str, content: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(event=name, data=json.dumps(content), sep="\n")


async def _base64(picture: Any, parameters: ImageParameters) -> str:
    # Encoders release the interpreter lock.
    content = await asyncio.to_thread(encode, picture, parameters.output_format, parameters.output_compression)
    return base64.b64encode(content).decode("ascii")


def _size_of(job: Job) -> str:
    return f"{job.size.width}x{job.size.height}"


def _usage(job: Job) -> Usage:
    size = job.size
    inputs = size.text_tokens + size.reference_tokens
    outputs = size.image_tokens * job.images
    return Usage(
        input_tokens=inputs,
        input_tokens_details=TokenDetails(image_tokens=size.reference_tokens, text_tokens=size.text_tokens),
        output_tokens=outputs,
        total_tokens=inputs + outputs,
    )


def _model(service: ImageService, created: int) -> ModelAnswer:
    facts, settings = service.facts(), service.settings
    presets = [
        PresetAnswer(
            name=preset.name,
            summary=preset.summary,
            lossy=preset.lossy,
            labels=list(preset.labels),
            verdict=service.verdicts.of(preset.name, facts),
            optimizations=list(preset.optimizations),
        )
        for preset in facts.presets
    ]
    return ModelAnswer(
        id=facts.checkpoint.name,
        created=created,
        kontext=ServiceDetails(
            presets=presets,
            loras=list(facts.loras),
            steps=settings.steps,
            guidance=settings.guidance,
            native=facts.native,
            text_tokens=facts.text_tokens,
            max_steps=settings.max_steps,
            max_images=settings.max_images,
            max_pixels=service.max_pixels(facts),
            deadline_s=settings.deadline_s,
            caution=facts.checkpoint.caution,
            checkpoint=facts.checkpoint,
            environment=dict(facts.environment),
        ),
    )
