"""Reads the bodies of requests, with limits on bytes, time and number of parts; nothing goes to disk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from kontext_fast.server.contract import UNSUPPORTED
from kontext_fast.server.errors import ApiError, bad_value, unknown_parameter
from kontext_fast.server.settings import MIB, ServerSettings

_Model = TypeVar("_Model", bound=BaseModel)

_MOST_FIELDS = 64
_MOST_FILES = 16
_MOST_FIELD_BYTES = 256 * 1024
_DISCARDED_BYTES = 64 * MIB
_DISCARD_S = 5.0


class _InMemoryParser(MultiPartParser):
    spool_max_size = 2**40


@dataclass(frozen=True)
class Form:
    """The parts of a form; names with `[]` count as those without."""

    fields: Mapping[str, str]
    files: tuple[tuple[str, bytes], ...]
    """Name and content, without the name that the client gave the file."""
    repeated: tuple[tuple[str, str], ...]
    """Text parts whose name ended in `[]`."""


class BodyReader:
    """Within the limits of a server."""

    def __init__(self, settings: ServerSettings) -> None:
        self._most_bytes = int(settings.max_upload_mib * MIB)
        self._seconds = settings.upload_s

    async def form(self, request: Request) -> Form:
        """Raises ApiError."""
        _require_type(request, "multipart/form-data")
        parser = _InMemoryParser(
            request.headers,
            self._limited(request),
            max_files=_MOST_FILES,
            max_fields=_MOST_FIELDS,
            max_part_size=_MOST_FIELD_BYTES,
        )
        try:
            async with asyncio.timeout(self._seconds):
                data = await parser.parse()
        except TimeoutError:
            raise self._too_slow() from None
        except (MultiPartException, UnicodeDecodeError) as error:
            reason = getattr(error, "message", "a part is not UTF-8")
            raise ApiError(400, f"The form cannot be read ({reason}); send it again.", code="invalid_form") from None
        try:
            return await _sorted_parts(data.multi_items())
        finally:
            await data.close()

    async def json(self, request: Request) -> Any:
        """Raises ApiError."""
        _require_type(request, "application/json")
        content = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                async for chunk in self._limited(request):
                    content += chunk
        except TimeoutError:
            raise self._too_slow() from None
        try:
            return json.loads(content, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise ApiError(400, "The body is not valid JSON; correct it.", code="invalid_json") from None

    async def _limited(self, request: Request) -> AsyncGenerator[bytes, None]:
        announced = request.headers.get("content-length", "0")
        too_large = announced.isdigit() and int(announced) > self._most_bytes
        if too_large and int(announced) > self._most_bytes + _DISCARDED_BYTES:
            raise self._too_large()
        received, chunks = 0, request.stream()
        async for chunk in chunks:
            received += len(chunk)
            too_large = too_large or received > self._most_bytes
            if too_large:
                break
            yield chunk
        if too_large:
            await _discard(chunks)
            raise self._too_large()

    def _too_large(self) -> ApiError:
        limit = f"{self._most_bytes / MIB:g} MiB"
        return ApiError(
            413, f"The request is larger than {limit}; send a smaller image.", code="too_large", headers=_CLOSE
        )

    def _too_slow(self) -> ApiError:
        return ApiError(
            408,
            f"The request did not arrive within {self._seconds:g} s; send it again.",
            code="upload_too_slow",
            headers=_CLOSE,
        )


_CLOSE = {"Connection": "close"}
"""What is left of the body is not read."""


def validated(model: type[_Model], values: Any, *, strict: bool) -> _Model:
    """`values` as `model`. Raises ApiError, which names the parameter and does not repeat its value."""
    if not isinstance(values, dict):
        raise ApiError(400, "The body is not a JSON object; send the parameters as one.", code="invalid_json")
    try:
        return model.model_validate(values, strict=strict)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        name = str(first["loc"][0]) if first["loc"] else None
        if name is not None and name in UNSUPPORTED:
            message = f"The parameter {name!r} is not supported: {UNSUPPORTED[name]}."
            raise ApiError(400, message, code="unsupported_parameter", param=name) from None
        if first["type"] == "extra_forbidden" and name is not None:
            raise unknown_parameter(name) from None
        raise bad_value(f"The parameter {name!r} cannot be used: {first['msg']}.", name) from None


async def _discard(chunks: AsyncIterator[bytes]) -> None:
    """Read a little of what is not wanted: a connection that is closed before has its answer lost on the way."""
    discarded = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            async for chunk in chunks:
                discarded += len(chunk)
                if discarded > _DISCARDED_BYTES:
                    return


def _require_type(request: Request, wanted: str) -> None:
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent != wanted:
        raise ApiError(415, f"Send the request as {wanted}.", code="unsupported_media_type")


async def _sorted_parts(items: list[tuple[str, Any]]) -> Form:
    fields: dict[str, str] = {}
    files, repeated = [], []
    for key, value in items:
        name = key.removesuffix("[]")
        if not isinstance(value, str):
            files.append((name, await value.read()))
        elif name != key:
            repeated.append((name, value))
        elif name in fields:
            raise bad_value(f"The parameter {name!r} is there twice; send it once.", name)
        else:
            fields[name] = value
    return Form(fields, tuple(files), tuple(repeated))


def _refuse_constant(name: str) -> None:
    """NaN and Infinity are no JSON."""
    raise ValueError(name)
