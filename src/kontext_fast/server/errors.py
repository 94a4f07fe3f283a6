"""Errors as OpenAI's API words them: `{"error": {"message", "type", "param", "code"}}` with the right status."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from kontext_fast.server.jobs import JobFailed, Reason


class ErrorDetail(BaseModel):
    message: str
    """One sentence that says what to do next."""
    type: str
    param: str | None
    """The parameter that is to blame."""
    code: str | None


class ErrorBody(BaseModel):
    """What every answer but a success is."""

    error: ErrorDetail


class ApiError(Exception):
    """Ends a request with an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.detail = ErrorDetail(message=message, type=_type_of(status), param=param, code=code)

    def body(self) -> dict[str, Any]:
        return ErrorBody(error=self.detail).model_dump()


def _type_of(status: int) -> str:
    special = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return special.get(status, "invalid_request_error" if status < 500 else "server_error")


_STATUS: Final[Mapping[Reason, tuple[int, str]]] = {
    "input": (400, "invalid_value"),
    "too large": (400, "too_large"),
    "refused": (400, "unsupported_on_this_machine"),
    "queue full": (429, "queue_full"),
    "no time": (429, "overloaded"),
    "cancelled": (499, "cancelled"),
    "out of memory": (500, "out_of_memory"),
    "worker died": (500, "worker_died"),
    "worker stalled": (500, "worker_stalled"),
    "internal": (500, "internal_error"),
    "draining": (503, "shutting_down"),
    "not ready": (503, "not_ready"),
    "deadline": (504, "deadline_exceeded"),
}

_POINTLESS_TO_REPEAT: Final[frozenset[Reason]] = frozenset({"out of memory", "deadline"})
"""OpenAI's clients repeat a request after any 5xx, unless they are told not to."""


def job_error(failure: JobFailed) -> ApiError:
    """How a client is told that a job has no result."""
    status, code = _STATUS[failure.reason]
    headers = {}
    if failure.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(failure.retry_after_s)))
    if failure.reason in _POINTLESS_TO_REPEAT:
        headers["x-should-retry"] = "false"
    return ApiError(status, str(failure), code=code, headers=headers)


def unknown_parameter(name: str) -> ApiError:
    return ApiError(400, f"There is no parameter {name!r}; leave it out.", code="unknown_parameter", param=name)


def bad_value(message: str, param: str | None) -> ApiError:
    return ApiError(400, message, code="invalid_value", param=param)
