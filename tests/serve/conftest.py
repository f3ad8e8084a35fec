"""A real server in this process, on the loopback, with the demo model."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx2
import openai
import pytest

from dit_cache_backends.configuration.settings import find_settings
from dit_cache_backends.demo import load_demo
from dit_cache_backends.serve.server import DrainingServer, Serving, make_server
from tests.serve.held import Held, until

PROMPT = "a large red circle on a blue background"


class Served:
    """A running server and its clients."""

    def __init__(
        self, pipeline: Any, cache_backend: str | None = None, cache_config: Any = None, **serving: Any
    ) -> None:
        self.pipeline = pipeline
        settings = find_settings(cache_backend, cache_config, environment={})
        told = Serving(
            settings=settings, **{"port": 0, "log_level": "warning", "drain_seconds": 5, **serving}
        )
        self.server: DrainingServer = make_server(pipeline, told)
        self._thread = threading.Thread(target=lambda: asyncio.run(self.server.serve()))
        self._thread.start()
        assert self.server.ready.wait(30)
        self.url = self.server.url
        self.http = httpx2.Client(base_url=self.url, timeout=60)
        self.openai = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=told.api_key or "none", max_retries=0, timeout=60
        )

    @property
    def engine(self) -> Any:
        return self.server.service.engine

    def ask(self, **body: Any) -> httpx2.Response:
        return self.http.post("/v1/images/generations", json={"prompt": PROMPT, **body})

    def ask_on_a_line(self, **body: Any) -> socket.socket:
        """The connection of a client that has asked and does not read the answer."""
        content = json.dumps({"prompt": PROMPT, **body}).encode()
        host, port = self.url.removeprefix("http://").split(":")
        line = socket.create_connection((host, int(port)), timeout=30)
        head = "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        line.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        return line

    def free(self) -> None:
        """Wait until nothing of any request is held."""

        def held() -> int:
            stats = self.engine.stats()
            return stats.running + stats.waiting + stats.sessions + stats.tensors

        until(lambda: held() == 0)

    def ended(self, seconds: float = 30) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def close(self) -> None:
        self.http.close()
        self.openai.close()
        self.server.end()
        assert self.ended()
        self.server.service.close()


@pytest.fixture(scope="session")
def demo() -> Any:
    return load_demo()


@pytest.fixture
def serve(demo: Any) -> Iterator[Callable[..., Served]]:
    """Starts a server with the settings that are given; all are ended with the test."""
    with ExitStack() as stack:

        def start(**settings: Any) -> Served:
            served = Served(demo, **settings)
            stack.callback(served.close)
            return served

        yield start


@pytest.fixture(scope="session")
def other_demo() -> Any:
    """For a server that runs while a test starts its own: an engine has its pipeline to itself."""
    return load_demo()


@pytest.fixture(scope="module")
def served(other_demo: Any) -> Iterator[Served]:
    """A server for tests that leave it as it was; its own cache is a certain one."""
    running = Served(other_demo, "cache_dit", {"max_warmup_steps": 2})
    yield running
    running.free()
    running.close()


@pytest.fixture
def held(demo: Any) -> Iterator[Held]:
    """Holds the demo's transformer before each forward until it is let go."""
    hold = Held(demo.transformer)
    yield hold
    hold.remove()
