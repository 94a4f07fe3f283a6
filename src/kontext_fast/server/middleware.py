"""What surrounds every request, as plain ASGI, since Starlette's BaseHTTPMiddleware hides that a client has left."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kontext_fast.server.errors import ApiError
from kontext_fast.server.metrics import Metrics

_log = logging.getLogger("kontext_fast.server.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_PROBES = ("/livez", "/readyz", "/health", "/metrics")
"""Asked every few seconds."""
REQUEST_ID = "kontext_request_id"
"""Key of the request's identity in the scope."""


class Observed:
    """Gives every request an identity, counts it, and logs one line, which has no query and no body."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        of_client = Headers(scope=scope).get("x-request-id", "")
        identity = of_client if _REQUEST_ID.fullmatch(of_client) else uuid.uuid4().hex
        scope[REQUEST_ID] = identity
        start, status = time.perf_counter(), 499

        async def send_with_identity(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = identity
            await send(message)

        self._metrics.inflight.inc()
        try:
            await self._app(scope, receive, send_with_identity)
        except Exception:
            status = 500
            raise
        finally:
            seconds, route = time.perf_counter() - start, _route_of(scope)
            self._metrics.inflight.dec()
            self._metrics.requests.labels(route, status).inc()
            self._metrics.request_seconds.labels(route).observe(seconds)
            level = logging.DEBUG if route in _PROBES else logging.INFO
            _log.log(level, "%s %s %d %.3f s %s", scope["method"], route, status, seconds, identity)


def _route_of(scope: Scope) -> str:
    """The path as it was declared, so that what clients make up is neither counted nor logged."""
    return getattr(scope.get("route"), "path", "other")


class Guarded:
    """Refuses what a page of another site sends through a visitor's browser.

    A browser names the site in `Origin`; and where the server listens on loopback without keys, a name that was made to
    point there is noticed by its `Host`.
    """

    def __init__(self, app: ASGIApp, allow_origins: Collection[str], hosts: Collection[str] | None) -> None:
        """`hosts`: the names by which the server may be addressed; None for any."""
        self._app = app
        self._allow_origins = frozenset(allow_origins)
        self._hosts = None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
            return
        await JSONResponse(error.body(), error.status)(scope, receive, send)

    def _refusal(self, headers: Headers) -> ApiError | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._hosts is not None and _name_of(host) not in self._hosts:
            return ApiError(
                421,
                "This server listens on loopback and does not answer to this name; start it with --allow-host NAME.",
                code="unknown_host",
            )
        if origin is None or origin in self._allow_origins or "*" in self._allow_origins:
            return None
        if urlsplit(origin).netloc == host:
            return None
        return ApiError(
            403,
            "Pages of other sites may not use this server; start it with --allow-origin URL.",
            code="origin_refused",
        )


def _name_of(host: str) -> str | None:
    """Without the port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def allowed_hosts(extra: Sequence[str]) -> tuple[str, ...]:
    """Names of a server on loopback."""
    return (*_LOOPBACK_NAMES, *extra)


class ApiKeys:
    """The keys of which a request must have one, compared in a time that does not depend on them."""

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        self._digests = [_digest(key.get_secret_value()) for key in keys]

    def require(self, headers: Headers) -> None:
        """Raises ApiError with 401 where keys are set and the request has none of them."""
        if not self._digests:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = _digest(key)
        # All are compared, so that the time does not tell which one is nearly right.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise ApiError(
                401,
                "This server wants an API key; send it as `Authorization: Bearer KEY`.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
