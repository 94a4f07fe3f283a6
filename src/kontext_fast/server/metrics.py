"""What Prometheus reads at /metrics. Labels have few values: no prompt, no identity, nothing that a client chooses."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from kontext_fast.records.names import machine_name
from kontext_fast.server.backend import Backend
from kontext_fast.server.jobs import Finished, Job, Started

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 8, 13, 20, 30, 60, 120, 300)
_HTTP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, *_SECONDS[2:])


class Metrics:
    """The metrics of one app, which its routes count, and which are read from its backend when they are asked for."""

    def __init__(self, backend: Backend) -> None:
        self._registry = registry = CollectorRegistry()
        self._backend = backend
        self._has_info = False
        self.requests = Counter(
            "kontext_http_requests", "Requests by route and status.", ("route", "code"), registry=registry
        )
        self.request_seconds = Histogram(
            "kontext_http_request_seconds",
            "From request to answer.",
            ("route",),
            buckets=_HTTP_SECONDS,
            registry=registry,
        )
        self.inflight = Gauge("kontext_http_requests_in_flight", "Requests that are being answered.", registry=registry)
        self.rejected = Counter(
            "kontext_rejected", "Jobs that were not accepted, or that have no result.", ("reason",), registry=registry
        )
        self.cancelled = Counter(
            "kontext_cancelled",
            "Jobs whose client left, in the queue or while they ran.",
            ("phase",),
            registry=registry,
        )
        self._queue_wait = Histogram(
            "kontext_queue_wait_seconds", "Time in the queue.", buckets=_SECONDS, registry=registry
        )
        self._job_seconds = Histogram(
            "kontext_job_seconds", "Time in the worker.", ("preset", "stage"), buckets=_SECONDS, registry=registry
        )
        self._images = Counter("kontext_images", "Images that were made.", ("preset",), registry=registry)
        self._steps = Counter("kontext_steps", "Steps, full or skipped.", ("preset", "kind"), registry=registry)
        self._model = Info("kontext_model", "What is served.", registry=registry)
        registry.register(_BackendCollector(backend))

    def started(self, event: Started) -> None:
        self._queue_wait.observe(event.queue_s)

    def finished(self, job: Job, result: Finished) -> None:
        self._job_seconds.labels(job.preset, "run").observe(result.run_s)
        if job.previews:
            self._job_seconds.labels(job.preset, "previews").observe(result.preview_s)
        if result.swap_s:
            self._job_seconds.labels(job.preset, "lora").observe(result.swap_s)
        self._images.labels(job.preset).inc(len(result.pictures))
        for kind in result.step_kinds:
            self._steps.labels(job.preset, kind).inc(job.images)

    def render(self) -> bytes:
        facts = self._backend.facts()
        if facts is not None and not self._has_info:
            self._has_info = True
            self._model.info(
                {
                    "checkpoint": facts.checkpoint.name,
                    "presets": ",".join(preset.name for preset in facts.presets),
                    "machine": machine_name(facts.environment) or "unknown",
                }
            )
        return generate_latest(self._registry)


class _BackendCollector:
    """What the backend knows at the moment of asking."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def collect(self) -> Iterable[Metric]:
        status = self._backend.status()
        yield GaugeMetricFamily("kontext_ready", "Whether jobs are accepted.", value=status.ready)
        yield GaugeMetricFamily("kontext_queue_depth", "Jobs that wait.", value=status.waiting)
        yield GaugeMetricFamily("kontext_running", "Jobs in workers.", value=status.running)
        wait = GaugeMetricFamily("kontext_expected_wait_seconds", "Expected time in the queue of a job that comes now.")
        if status.expected_wait_s is not None:
            wait.add_metric([], status.expected_wait_s)
        yield wait
        busy = CounterMetricFamily("kontext_busy_seconds", "Time in which a worker ran jobs.", labels=["worker"])
        restarts = CounterMetricFamily("kontext_worker_restarts", "Processes that were replaced.", labels=["worker"])
        device = GaugeMetricFamily("kontext_device_memory_bytes", "Held on the device.", labels=["worker"])
        host = GaugeMetricFamily("kontext_host_memory_bytes", "Resident, of the worker.", labels=["worker"])
        for worker in status.workers:
            busy.add_metric([worker.name], worker.busy_s)
            restarts.add_metric([worker.name], worker.restarts)
            if worker.device_memory_bytes is not None:
                device.add_metric([worker.name], worker.device_memory_bytes)
            if worker.host_memory_bytes is not None:
                host.add_metric([worker.name], worker.host_memory_bytes)
        yield from (busy, restarts, device, host)
