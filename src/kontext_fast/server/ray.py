"""The server on a Ray cluster, by Ray Serve: ingress replicas with the app, and a replica with a pipeline on each card.

    serve run kontext_fast.server.ray:app checkpoint=tiny presets=baseline

The app is that of the single server; its backend hands jobs to replicas, each of which has the worker pool of a single
server with one worker. A replica takes requests once it is warm. Serve keeps up to `queue` requests waiting, starts and
ends replicas by how many wait, and replaces them one by one where the settings change.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from kontext_fast.errors import InvalidInput, KontextError
from kontext_fast.server.app import create_app
from kontext_fast.server.jobs import Event, Job, JobFailed, ServiceFacts
from kontext_fast.server.placement import plan_workers
from kontext_fast.server.pool import WorkerPool
from kontext_fast.server.ray_backend import Failure, RayBackend
from kontext_fast.server.settings import ServerSettings

NAME = "kontext"
"""Of the application in the cluster."""
_ONGOING = 2
"""Jobs that a replica holds: one runs, and the next one is there when it ends."""


@dataclass(frozen=True)
class Scale:
    """How many replicas there are; the number of requests that wait decides."""

    fewest: int = 1
    most: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.fewest <= self.most:
            raise InvalidInput(f"There are to be {self.fewest} to {self.most} replicas; give --min of 1 to --max.")


@serve.deployment(name="Editor")
class Editor:
    """One card with its presets and LoRAs."""

    async def __init__(self, settings: ServerSettings) -> None:  # type: ignore[misc]
        failures: list[KontextError] = []
        self._pool = WorkerPool(settings, plan_workers(settings), on_unusable=failures.append)
        await self._pool.start()
        while self._pool.facts() is None:
            if failures:
                raise failures[0]
            await asyncio.sleep(0.05)

    async def facts(self) -> ServiceFacts | None:
        return self._pool.facts()

    async def run(self, job: Job) -> AsyncIterator[Event | Failure | None]:
        """The events of `job`, of which a failure is the last one; it is cancelled with the call.

        None alone says that this replica is older or newer than the preset of the job.
        """
        facts = self._pool.facts()
        if facts is None or job.preset not in {preset.name for preset in facts.presets}:
            yield None
            return
        if job.lora is not None:
            await self.hold(job.lora)
        stream = None
        try:
            stream = self._pool.submit(job)
            async for event in stream:
                yield event
        except JobFailed as failure:
            yield (str(failure), failure.reason, failure.retry_after_s)
        finally:
            if stream is not None:
                await stream.aclose()

    @serve.multiplexed(max_num_models_per_replica=1)  # type: ignore[untyped-decorator]
    async def hold(self, lora: str) -> str:
        """Tell Serve's router which LoRA is merged here; the worker merges it with the first job that names it."""
        return lora


@serve.deployment(name="Ingress", max_ongoing_requests=1000)
@serve.ingress()
class Ingress:
    """The app of the single server."""

    def __init__(self, settings: ServerSettings, editors: Any) -> None:
        self._settings, self._editors = settings, editors

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._settings, RayBackend(self._editors, self._settings))


def application(settings: ServerSettings, scale: Scale, *, on_gpu: bool) -> Application:
    """What Serve runs. Raises InvalidInput or Refused where `settings` cannot be served."""
    editors = Editor.options(  # type: ignore[attr-defined]
        autoscaling_config={
            "min_replicas": scale.fewest,
            "max_replicas": scale.most,
            "initial_replicas": scale.fewest,
            "target_ongoing_requests": _ONGOING,
        },
        max_ongoing_requests=_ONGOING,
        max_queued_requests=settings.queue + _ONGOING * scale.most,
        graceful_shutdown_timeout_s=settings.grace_s,
        ray_actor_options={"num_gpus": 1} if on_gpu else {"num_cpus": 0.5},
    ).bind(settings)
    # Where one version replaces another, requests of the old ingress wait for replicas that load, which takes longer
    # than an edit; none waits longer than its deadline.
    ingress = Ingress.options(  # type: ignore[attr-defined]
        graceful_shutdown_timeout_s=settings.grace_s + settings.deadline_s, ray_actor_options={"num_cpus": 0.1}
    )
    return ingress.bind(settings, editors)


def app(args: Mapping[str, Any]) -> Application:
    """For `serve run` and config files of Serve: fields of `ServerSettings`, and `min` and `max` replicas.

    Lists may be given as texts with commas. Raises what `application` raises.
    """
    values = dict(args)
    scale = Scale(int(values.pop("min", 1)), int(values.pop("max", values.get("min", 1))))
    lists = {name for name, field in ServerSettings.model_fields.items() if "tuple" in str(field.annotation)}
    for name in lists & values.keys():
        if isinstance(values[name], str):
            values[name] = tuple(values[name].split(","))
    on_gpu = ray.is_initialized() and ray.cluster_resources().get("GPU", 0) >= 1
    return application(ServerSettings(**values), scale, on_gpu=on_gpu)


def serve_on_ray(
    settings: ServerSettings,
    scale: Scale,
    address: str | None,
    announce: Callable[[str], None],
    until_stopped: Callable[[], None],
) -> None:
    """Deploy to the cluster at `address`, where the server stays and a changed one replaces it.

    Without an address, serve on this machine until `until_stopped` returns, and then finish what runs.

    Raises InvalidInput or Refused where this cannot be served.
    """
    port = settings.port or _free_port(settings.host)
    options = {} if address else {"include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="error", **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"No Ray cluster answers at {address} ({error}); start one with `ray start`.") from error
    on_gpu = ray.cluster_resources().get("GPU", 0) >= 1 and settings.devices != ("cpu",)
    serve.start(http_options={"host": settings.host, "port": port})
    announce(f"http://{settings.host}:{port}")
    try:
        serve.run(application(_with_absolute_paths(settings), scale, on_gpu=on_gpu), name=NAME, route_prefix="/")
    except RuntimeError as error:
        raise InvalidInput(f"The replicas do not start ({error}); see `serve status`.") from error
    if address is None:
        until_stopped()
        serve.delete(NAME)
        serve.shutdown()


def _with_absolute_paths(settings: ServerSettings) -> ServerSettings:
    """Processes of the cluster work in folders of their own."""
    checkpoint = Path(settings.checkpoint).expanduser()
    return settings.model_copy(
        update={
            "checkpoint": str(checkpoint.absolute()) if checkpoint.exists() else settings.checkpoint,
            "loras": tuple(lora.model_copy(update={"path": lora.path.absolute()}) for lora in settings.loras),
            "verifications": tuple(path.absolute() for path in settings.verifications),
        }
    )


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as listener:
        return int(listener.getsockname()[1])
