"""What the OpenAPI page says of bodies and errors that the routes read and write by themselves."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

from kontext_fast.server.contract import ImageParameters
from kontext_fast.server.errors import ErrorBody

_DESCRIPTIONS: Final = {
    400: "A parameter cannot be used, and `param` names it.",
    401: "The API key is missing or unknown.",
    403: "Pages of other sites may not use this server.",
    408: "The request did not arrive in time.",
    413: "The request is too large.",
    415: "The body has another type than the route reads.",
    421: "The server does not answer to this name.",
    429: "The queue is full, or the deadline could not be kept; `Retry-After` says when to try again.",
    500: "The edit failed.",
    503: "The server is loading or shutting down; `Retry-After` says when to try again.",
    504: "The deadline passed.",
}

ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": ErrorBody, "description": description} for status, description in _DESCRIPTIONS.items()
}


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """What `openapi_extra` of a route says of a JSON body."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _schema(model)}}}}


def edit_body() -> dict[str, Any]:
    """The form of an edit: its parameters, and its image as a file or an address."""
    schema = _schema(ImageParameters)
    file = {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP; or `image[]`, or `url`."}
    address = {"type": "string", "description": "A data URL, or https where the operator allows the host."}
    schema["properties"] |= {"image": file, "image[]": {"type": "array", "items": file, "maxItems": 1}, "url": address}
    encoding = {name: {"contentType": "image/png, image/jpeg, image/webp"} for name in ("image", "image[]")}
    content = {"multipart/form-data": {"schema": schema, "encoding": encoding}}
    return {"requestBody": {"required": True, "content": content}}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """The schema with the names that OpenAI or this package uses, and not their aliases."""
    return model.model_json_schema(by_alias=False)
