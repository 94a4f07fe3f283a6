"""The FastAPI application: routes, errors and what surrounds them, over any backend."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from kontext_fast.server.backend import Backend
from kontext_fast.server.bodies import BodyReader
from kontext_fast.server.errors import ApiError
from kontext_fast.server.metrics import Metrics
from kontext_fast.server.middleware import REQUEST_ID, ApiKeys, Guarded, Observed, allowed_hosts
from kontext_fast.server.pages import pages_router
from kontext_fast.server.routes.health import health_router
from kontext_fast.server.routes.openai import openai_router
from kontext_fast.server.routes.original import original_router
from kontext_fast.server.service import ImageService
from kontext_fast.server.settings import ServerSettings
from kontext_fast.server.verdicts import KnownVerdicts
from kontext_fast.version import __version__

_log = logging.getLogger("kontext_fast.server")

_DESCRIPTION = "Edits images by instruction with FLUX.1-Kontext. OpenAI's clients work; extensions have names of ours."


def create_app(settings: ServerSettings, backend: Backend) -> FastAPI:
    """The application over `backend`, which it starts and stops. Raises InvalidInput for unreadable verifications."""
    metrics = Metrics(backend)
    service = ImageService(settings, backend, metrics, KnownVerdicts.read(settings.verifications))
    keys = ApiKeys(settings.api_keys)

    async def with_key(request: Request) -> None:
        keys.require(request.headers)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await backend.start()
        await service.decoder.warm_up()
        try:
            yield
        finally:
            await backend.stop()

    app = FastAPI(
        title="kontext-fast",
        description=_DESCRIPTION,
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    bodies = BodyReader(settings)
    app.include_router(openai_router(service, bodies), dependencies=[Depends(with_key)])
    app.include_router(original_router(service, bodies), dependencies=[Depends(with_key)])
    app.include_router(health_router(backend, metrics))
    app.include_router(pages_router(app))
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _client_left)
    app.add_exception_handler(Exception, _bug)
    # The last one added is the first one that sees a request.
    check_hosts = settings.on_loopback and not settings.api_keys
    hosts = allowed_hosts(settings.allow_hosts) if check_hosts else None
    app.add_middleware(Guarded, allow_origins=settings.allow_origins, hosts=hosts)
    if settings.allow_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.allow_origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(Observed, metrics=metrics)
    return app


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def _http_error(_: Request, error: Exception) -> Response:
    """What Starlette itself refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    words = {404: "There is nothing at this path; see /docs.", 405: "This path does not take this method; see /docs."}
    message = words.get(error.status_code, f"{error.detail}.")
    wrapped = ApiError(error.status_code, message, code="not_found" if error.status_code == 404 else "invalid_request")
    return JSONResponse(wrapped.body(), error.status_code, headers=error.headers)


async def _client_left(_: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _bug(request: Request, error: Exception) -> Response:
    """The trace goes to the log, and to the client only the identity by which it is found there."""
    identity = request.scope.get(REQUEST_ID, "unknown")
    _log.error("request %s failed", identity, exc_info=error)
    wrapped = ApiError(500, f"The server failed; its log has the reason under {identity}.", code="internal_error")
    return JSONResponse(wrapped.body(), 500)
