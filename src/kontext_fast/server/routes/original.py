"""The original project's `POST /inference`, with its fields and limits; every field works or is refused by name."""

from __future__ import annotations

import asyncio
import base64

from fastapi import APIRouter, Request

from kontext_fast.server.bodies import BodyReader, validated
from kontext_fast.server.contract import OriginalAnswer, OriginalRequest
from kontext_fast.server.errors import bad_value
from kontext_fast.server.images import MEDIA_TYPES, Format, encode
from kontext_fast.server.routes.schema import ERRORS, json_body
from kontext_fast.server.service import ImageService, Wish

_FORMATS: dict[str, Format] = {"PNG": "png", "JPG": "jpeg", "WEBP": "webp"}


def original_router(service: ImageService, bodies: BodyReader) -> APIRouter:
    router = APIRouter(tags=["original"], responses=ERRORS)

    @router.post(
        "/inference",
        summary="Edit or draw, as the original project's clients ask for it",
        openapi_extra=json_body(OriginalRequest),
        response_model=OriginalAnswer,
    )
    async def inference(request: Request) -> OriginalAnswer:
        asked = validated(OriginalRequest, await bodies.json(request), strict=True)
        _check(asked)
        native = service.facts().native
        job = await service.job(
            Wish(
                prompt=asked.prompt,
                image=None if asked.image_url is None else await service.fetch(asked.image_url, "image_url"),
                images=asked.num_images,
                size=(asked.width or native, asked.height or native),
                seed=asked.seed,
                steps=asked.steps,
                guidance=asked.guidance_scale,
                negative=asked.negative_prompt,
                # The original's scales below 1 do what 1 does: no guidance.
                true_cfg=max(1.0, asked.true_cfg_scale),
            ),
            request,
        )
        result = await service.result(service.submit(job), job, request)
        form = _FORMATS[asked.output_format]
        quality = None if form == "png" else asked.output_quality
        contents = [await asyncio.to_thread(encode, picture, form, quality) for picture in result.pictures]
        return OriginalAnswer(
            images=[f"data:{MEDIA_TYPES[form]};base64,{base64.b64encode(content).decode()}" for content in contents],
            inference_time=result.queue_s + result.run_s,
            seed=result.seeds[0],
            kontext=service.details(job, result, request),
        )

    return router


def _check(asked: OriginalRequest) -> None:
    """Raise ApiError for what FLUX.1-Kontext would read and this route does not pass on."""
    for second, first in (("prompt2", "prompt"), ("negative_prompt2", "negative_prompt")):
        value = getattr(asked, second)
        if value not in (None, getattr(asked, first)):
            raise bad_value(
                f"`{second}` has to equal `{first}`, since both encoders read one text; leave it out.", second
            )
