"""Probes and metrics, which answer at once whatever the workers do, and need no key."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from kontext_fast.records.names import machine_name, ran_on_gpu
from kontext_fast.server.backend import Backend
from kontext_fast.server.contract import HealthAnswer, ProbeAnswer, WorkerAnswer
from kontext_fast.server.metrics import Metrics
from kontext_fast.version import __version__


def health_router(backend: Backend, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/livez", summary="Whether this process answers", response_model=ProbeAnswer)
    async def livez() -> ProbeAnswer:
        return ProbeAnswer(status="alive")

    @router.get(
        "/readyz",
        summary="Whether requests should be sent here",
        response_model=ProbeAnswer,
        responses={503: {"model": ProbeAnswer, "description": "Loading, restarting or shutting down."}},
    )
    async def readyz() -> Response:
        ready = backend.status().ready
        answer = ProbeAnswer(status="ready" if ready else "not ready")
        return JSONResponse(answer.model_dump(), 200 if ready else 503)

    @router.get(
        "/health",
        summary="How the service is doing",
        response_model=HealthAnswer,
        responses={503: {"model": HealthAnswer, "description": "Loading, restarting or shutting down."}},
    )
    async def health() -> Response:
        status, facts = backend.status(), backend.facts()
        word: Literal["healthy", "starting", "draining"] = "healthy" if status.ready else "starting"
        environment = {} if facts is None else facts.environment
        answer = HealthAnswer(
            status="draining" if status.draining else word,
            gpu_available=ran_on_gpu(environment),
            gpu_name=machine_name(environment) if ran_on_gpu(environment) else None,
            model_loaded=facts is not None,
            checkpoint=None if facts is None else facts.checkpoint.name,
            version=__version__,
            waiting=status.waiting,
            running=status.running,
            expected_wait_s=status.expected_wait_s,
            workers=[
                WorkerAnswer(name=worker.name, state=worker.state, restarts=worker.restarts, busy_s=worker.busy_s)
                for worker in status.workers
            ],
        )
        return JSONResponse(answer.model_dump(), 200 if status.ready else 503)

    @router.get("/metrics", summary="For Prometheus", response_class=PlainTextResponse)
    async def read_metrics() -> Response:
        return Response(metrics.render(), headers={"content-type": CONTENT_TYPE_LATEST})

    return router
