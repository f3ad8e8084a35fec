"""Running the application: one process, which ends by first finishing what it has begun."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from dit_cache_backends.configuration.settings import Settings
from dit_cache_backends.errors import PlacementError
from dit_cache_backends.hosts.calls import device_of
from dit_cache_backends.hosts.engine import Engine
from dit_cache_backends.hosts.placement import Placement
from dit_cache_backends.serve.access import LOOPBACK, is_loopback
from dit_cache_backends.serve.app import create_app
from dit_cache_backends.serve.limits import Limits
from dit_cache_backends.serve.service import Service

if TYPE_CHECKING:
    import socket

__all__ = ["DrainingServer", "Serving", "make_server"]

log = logging.getLogger("uvicorn.error")


@dataclass(frozen=True)
class Serving:
    """How a model is served."""

    model: str = "demo"
    """Its name in requests and answers."""
    settings: Settings = field(default_factory=Settings)
    """The cache of requests that say nothing of it, and how the model is run."""
    host: str = "127.0.0.1"
    port: int = 8091
    """0 takes a free one."""
    api_key: str | None = None
    """What callers have to show; None lets everybody in."""
    allowed_hosts: Collection[str] = ()
    """Names by which the server may be called, beside its address. On the loopback only those and its own are right."""
    limits: Limits = field(default_factory=Limits)
    max_concurrent: int = 4
    max_waiting: int = 64
    max_batch: int = 1
    drain_seconds: float = 30.0
    """How long requests under way may still take once the server is told to end."""
    log_level: str = "info"

    @property
    def hosts(self) -> Collection[str]:
        """Every name by which the server may be called; empty allows all."""
        if is_loopback(self.host) or self.allowed_hosts:
            return {*LOOPBACK, self.host, *self.allowed_hosts}
        return ()


def make_server(pipeline: Any, serving: Serving) -> DrainingServer:
    """A server that draws with ``pipeline``, not yet running: ``run()`` it, or ``serve()`` it in a loop of your own.

    Raises:
        ConfigError: An option does not fit the backend, or the backend the model.
        UnknownBackendError: No backend of that name is installed.
        UnknownTransformerError: Nothing is known of the pipeline's transformer.
        PlacementError: The model cannot be run that way here.
    """
    placement = Placement(serving.settings, device_of(pipeline))
    if placement.shared:
        raise PlacementError(
            "a parallelism_config makes several processes share each request, and this server is one process."
            " Leave it out; over several GPUs, vLLM-Omni serves the same backends (docs/serving.md)."
        )
    engine = Engine(
        pipeline,
        settings=serving.settings,
        placement=placement,
        max_concurrent=serving.max_concurrent,
        max_waiting=serving.max_waiting,
        max_batch=serving.max_batch,
    )
    room = serving.max_concurrent * serving.max_batch + serving.max_waiting
    service = Service(engine, serving.limits, room)
    app = create_app(
        service,
        serving.model,
        pipeline,
        cache_config=serving.settings.options,
        api_key=serving.api_key,
        hosts=serving.hosts,
    )
    return DrainingServer(
        uvicorn.Config(
            app,
            host=serving.host,
            port=serving.port,
            log_level=serving.log_level,
            server_header=False,
            timeout_keep_alive=15,
            # What is cancelled after the draining still has its last step and its answer before it.
            timeout_graceful_shutdown=10,
        ),
        service,
        serving.drain_seconds,
    )


class DrainingServer(uvicorn.Server):
    """Told to end (SIGTERM, SIGINT), it answers new requests with 503 and finishes those it has, for a bounded time.

    Told again, it ends at once. The exit status is 0.
    """

    def __init__(self, config: uvicorn.Config, service: Service, drain_seconds: float) -> None:
        super().__init__(config)
        self.service = service
        self._drain_seconds = drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None
        self.ready = threading.Event()
        """Set once it listens."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.ready.set()

    @property
    def url(self) -> str:
        """Where it listens."""
        address = self.servers[0].sockets[0].getsockname()
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"http://{host}:{address[1]}"

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.end()

    def end(self) -> None:
        """Begin to end; the second time, end at once. May be called from any thread and from a signal handler."""
        if self._loop is None or self._loop.is_closed():
            self.should_exit = True
            return
        self._loop.call_soon_threadsafe(self._begin_to_end)

    def _begin_to_end(self) -> None:
        if self._ending is not None:
            self.should_exit = self.force_exit = True
            return
        self.service.draining = True
        self._ending = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        log.info("Shutting down; the requests under way have %g s", self._drain_seconds)
        try:
            await asyncio.wait_for(self.service.drained(), self._drain_seconds)
        except asyncio.TimeoutError:
            log.warning("Requests that were not done in %g s are cancelled", self._drain_seconds)
            self.service.cancel_all()
        self.should_exit = True
