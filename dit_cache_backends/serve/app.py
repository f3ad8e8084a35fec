"""The application: which address answers what."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyio import to_thread
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders

from dit_cache_backends.config import describe
from dit_cache_backends.registry import list_cache_backends
from dit_cache_backends.serve.access import Access
from dit_cache_backends.serve.answers import Progress, whole
from dit_cache_backends.serve.failures import add_handlers
from dit_cache_backends.serve.limits import BodyLimit
from dit_cache_backends.serve.metrics import CountRequests
from dit_cache_backends.serve.schema import FIELDS, ImageRequest, check, check_model

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from dit_cache_backends.serve.service import Service

__all__ = ["create_app"]

_PAGE = Path(str(files("dit_cache_backends.serve"))) / "page"


def create_app(
    service: Service,
    model: str,
    pipeline: Any,
    *,
    cache_config: dict[str, Any] | None = None,
    api_key: str | None = None,
    hosts: Collection[str] = (),
) -> FastAPI:
    """The server's application. It closes ``service`` when it ends.

    Args:
        service: The engine and the bounds.
        model: The name under which the model is served.
        pipeline: The diffusers pipeline, for what the page and the size check want to know of it.
        cache_config: The options of the server's own cache, to be shown.
        api_key: What ``/v1/`` asks for; None lets everybody in.
        hosts: The names by which the server may be called; empty allows every one.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await to_thread.run_sync(service.close)

    app = FastAPI(title="dit-cache", docs_url=None, redoc_url=None, lifespan=lifespan)
    made = int(time.time())
    multiple = _multiple(pipeline)

    @app.post("/v1/images/generations")
    async def generations(asked: ImageRequest, request: Request) -> Response:
        check(asked, service.limits, model, multiple)
        drawing = await service.draw(asked)
        if asked.stream:
            return Progress(drawing, asked)
        return JSONResponse(await whole(drawing, asked, request))

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [card()]}

    @app.get("/v1/models/{name:path}")
    def one_model(name: str) -> dict[str, Any]:
        check_model(name, model)
        return card()

    def card() -> dict[str, Any]:
        return {
            "id": model,
            "object": "model",
            "created": made,
            "owned_by": "dit-cache",
            "pipeline": type(pipeline).__name__,
            "cache_backend": service.own_backend,
            "cache_config": cache_config or {},
            "limits": asdict(service.limits),
            "size_multiple": multiple,
        }

    @app.get("/v1/cache_backends")
    def cache_backends() -> dict[str, Any]:
        found = [info for info in list_cache_backends().values() if info.cls is not None]
        return {
            "object": "list",
            "data": [
                {
                    "id": info.name,
                    "object": "cache_backend",
                    "summary": info.summary,
                    "distribution": f"{info.distribution} {info.version}",
                    "options": [asdict(option) for option in describe(info.cls.Config)] if info.cls else [],
                }
                for info in found
            ],
        }

    @app.get("/health")
    async def health() -> dict[str, str]:
        if service.draining:
            raise service.closing()
        return {"status": "ok"}

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(_PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=_PAGE))
    add_handlers(app, FIELDS)
    # The last one added is the first to see a request.
    app.add_middleware(BodyLimit, limits=service.limits)
    app.add_middleware(Access, api_key=api_key, hosts=hosts)
    app.add_middleware(SafeHeaders)
    app.add_middleware(CountRequests, metrics=service.metrics)
    return app


class SafeHeaders:
    """Headers by which a browser keeps the page to this server and this server's pictures to the page."""

    _HEADERS = (
        ("Content-Security-Policy", "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'"),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
    )

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._HEADERS:
                    headers[name] = value
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


def _multiple(pipeline: Any) -> int:
    """Of how many pixels the pipeline makes its pictures: it rounds every other size down."""
    config = getattr(getattr(pipeline, "image_processor", None), "config", None)
    factor = getattr(config, "vae_scale_factor", 1)
    return factor if isinstance(factor, int) and factor > 0 else 1
