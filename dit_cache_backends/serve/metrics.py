"""What Prometheus reads from a server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from dit_cache_backends.hosts.engine import EngineStats, StepEvent

__all__ = ["OUTCOME", "CountRequests", "Metrics", "NO_CACHE"]

NO_CACHE = "none"
"""The label of requests that were drawn without a cache."""
OUTCOME = "dit_cache.outcome"
"""Where a response that has begun notes the status it ended with."""
_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
_PATHS = ("/", "/health", "/metrics", "/v1/cache_backends", "/v1/images/generations", "/v1/models")


class Metrics:
    """The counters of one server; every method may be called from any thread."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "dit_cache_requests",
            "Requests answered, by path and HTTP status (499: the client left).",
            ("path", "status"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "dit_cache_request_seconds",
            "From a request for pictures to its last byte, waiting included, by HTTP status.",
            ("status",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        labels = ("cache_backend",)
        self._steps = Counter("dit_cache_steps", "Denoising steps.", labels, registry=self._registry)
        self._hits = Counter(
            "dit_cache_cached_steps",
            "Denoising steps in which blocks were skipped: cache hits.",
            labels,
            registry=self._registry,
        )
        self._run = Counter(
            "dit_cache_blocks_run",
            "Transformer blocks that ran; only a cache counts them.",
            labels,
            registry=self._registry,
        )
        self._skipped = Counter(
            "dit_cache_blocks_skipped",
            "Transformer blocks that were skipped.",
            labels,
            registry=self._registry,
        )
        self._registry.register(_EngineGauges(stats))

    def step(self, backend: str, event: StepEvent) -> None:
        """Count a denoising step that was done with the cache of that name."""
        self._steps.labels(backend).inc()
        self._hits.labels(backend).inc(event.cached)
        self._run.labels(backend).inc(event.blocks_run)
        self._skipped.labels(backend).inc(event.blocks_skipped)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineGauges(Collector):
    """What the engine holds at the moment it is asked."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def describe(self) -> Iterator[Metric]:
        return iter(())  # so that registering does not ask the engine

    def collect(self) -> Iterator[Metric]:
        now = self._stats()
        for name, text, value in (
            ("queue_length", "Requests that wait for their turn.", now.waiting),
            ("running", "Requests that are being drawn.", now.running),
            ("sessions", "Cache states of requests that are held.", now.sessions),
            ("held_tensors", "Tensors that caches hold for the requests under way.", now.tensors),
            ("held_bytes", "Their size in bytes.", now.bytes),
        ):
            yield GaugeMetricFamily(f"dit_cache_{name}", text, value=value)


class CountRequests:
    """Counts what the application answers."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status: int | None = None
        began = time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            self._count(scope, status, time.perf_counter() - began)

    def _count(self, scope: dict[str, Any] | Any, status: int | None, seconds: float) -> None:
        path = scope["path"]
        known = path if path in _PATHS else "/page" if path.startswith("/page/") else "other"
        ended = str(scope.get(OUTCOME) or status or 499)
        self.metrics.requests.labels(known, ended).inc()
        if known == "/v1/images/generations":
            self.metrics.seconds.labels(ended).observe(seconds)
